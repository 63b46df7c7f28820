"""The same promises for a model that computes answers another way than prompts: multi-head latent attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine_bench import Bench
from recorded_model import RecordedModel
from weights_by_name import WeightsByName

from engine.config import EngineConfig
from engine.models.decoder import Decoder
from engine.ops.features import features_of
from engine.ops.registry import select_ops
from engine.rope_spec import RopeSpec
from engine.scheduling.request import Request
from engine.spec import LatentAttentionSpec, LayerSpec, MlpSpec, ModelSpec, MoeSpec, RoutingSpec
from wire.block_hash import chain
from wire.sampling import BeamSearch, SamplingParams

ATTENTION = LatentAttentionSpec(4, 24, 20, 10, 6, 12, RopeSpec(10000.0), 0.25)
ROUTING = RoutingSpec(6, 2, "sigmoid", normalise=True, num_groups=3, top_groups=2, score_bias=True)
LAYERS = tuple(LayerSpec(ATTENTION, mlp) for mlp in (MlpSpec(64), MoeSpec(ROUTING, MlpSpec(32), MlpSpec(32))))
SPEC = ModelSpec("deepseek_v3", 48, 320, 512, 1e-5, LAYERS, tie_embeddings=True)
PROMPT = [(7 * i * i + 3 * i + 1) % 300 for i in range(45)]
RUN = {"ignore_eos": True, "max_tokens": 40, "temperature": 0.9, "seed": 11}


@pytest.fixture
def make_bench():
    def make(**sizes):
        config = EngineConfig(**{"num_blocks": 64, "max_model_len": 256, "block_tokens": 32, **sizes})
        table = select_ops(torch.float32, features=features_of(SPEC))
        return Bench(config, model=RecordedModel(Decoder(SPEC, table, WeightsByName(), 256)))

    return make


def same_logits(bench, other, num_prompt_tokens, ends):
    """Whether both gave one row after each of so many tokens, for requests with a prompt of that length."""
    pairs = [(bench.model.logits[num_prompt_tokens, end], other.model.logits[num_prompt_tokens, end]) for end in ends]
    return all(np.array_equal(row, mine[0]) for mine, theirs in pairs for row in [*mine, *theirs])


def test_the_same_bits_alone_batched_chunked_and_preempted(make_bench):
    alone = make_bench()
    answer = alone.generate(PROMPT, **RUN)
    assert len(set(answer)) > 10

    beside = make_bench(max_num_batched_tokens=39, max_num_seqs=8)
    others = [beside.submit(PROMPT[i : 3 * i + 2], **{**RUN, "seed": i}) for i in range(12)]
    key = beside.submit(PROMPT, **RUN)
    beside.run()
    assert beside.answer(key) == answer
    assert all(len(beside.answer(other)) == 40 for other in others)
    assert same_logits(alone, beside, 45, range(45, 85))


@pytest.mark.parametrize("caching", [True, False])
def test_what_a_preempted_request_computes_again_has_the_bits_of_the_first_time(make_bench, caching):
    run = {**RUN, "max_tokens": 70}
    crowded = make_bench(num_blocks=7, max_model_len=128, enable_prefix_caching=caching)
    prompts = [PROMPT[size::-1] for size in (44, 40, 39)]
    keys = [crowded.submit(prompt, **run) for prompt in prompts]
    crowded.run()
    assert crowded.engine.stats.preemptions > 0
    for key, prompt in zip(keys, prompts, strict=True):
        alone = make_bench(max_model_len=128)
        assert alone.generate(prompt, **run) == crowded.answer(key)
        assert same_logits(alone, crowded, len(prompt), range(len(prompt), len(prompt) + 70))


def test_another_attempt_goes_on_with_the_same_bits(make_bench):
    """Prompt and emitted tokens come as one, and with them the length of the prompt."""
    alone, other = make_bench(), make_bench(max_num_batched_tokens=35, max_num_seqs=2)
    answer = alone.generate(PROMPT, **RUN)
    assert other.generate(PROMPT, emitted=answer[:25], **RUN) == answer[25:]
    assert same_logits(alone, other, 45, range(70, 85))


def test_an_answer_that_becomes_a_prompt_is_computed_as_one(make_bench):
    """The next turn of a conversation finds the blocks of the old prompt and none that an answer has a part in."""
    turn = 80
    first = make_bench()
    conversation = PROMPT[:40] + first.generate(PROMPT[:40], **{**RUN, "max_tokens": 60})
    first.generate(conversation[:turn], **RUN)
    fresh = make_bench()
    fresh.generate(conversation[:turn], **RUN)
    assert first.engine.stats.prefix_hit_tokens == 32
    assert same_logits(fresh, first, turn, range(turn, turn + 40))


def test_a_prompt_as_long_finds_the_answer_too(make_bench):
    bench = make_bench()
    answer = bench.generate(PROMPT, **RUN)
    assert bench.generate(PROMPT, emitted=answer[:30], **RUN) == answer[30:]
    assert bench.engine.stats.prefix_hit_tokens == len(PROMPT)  # of the prompt; its second block holds 19 more


def test_blocks_of_a_prompt_have_the_names_a_router_gives_them(make_bench):
    tokens = [*PROMPT, *range(60)]
    request = Request((1, 1), tokens, len(PROMPT), SamplingParams(max_tokens=1), answer_is_apart=True)
    names, plain = request.hashes(3, 32), list(chain(tokens, 32))
    assert names[0] == plain[0]
    assert not {names[1], names[2]} & set(plain)
    longer = Request((2, 1), tokens, len(PROMPT) + 1, SamplingParams(max_tokens=1), answer_is_apart=True)
    assert longer.hashes(3, 32)[0] == names[0]
    assert not set(longer.hashes(3, 32)[1:]) & set(names)
    at_border = Request((3, 1), tokens, 64, SamplingParams(max_tokens=1), answer_is_apart=True)
    assert at_border.hashes(3, 32)[:2] == plain[:2]
    assert at_border.hashes(3, 32)[2] != plain[2]


def test_branches_go_on_with_the_bits_each_would_have_alone(make_bench):
    bench = make_bench()
    key = bench.submit(PROMPT, **RUN)
    for _ in range(25):
        bench.step()
    head = bench.answer(key)
    children = [
        (PROMPT, [*head[:20], 7]),
        # The same tokens, of which more were the prompt: of no use past the shorter prompt's end.
        ([*PROMPT, *head[:4]], [*head[4:20], 9]),
    ]
    keys = [bench.fork(key, prompt, emitted=emitted, **RUN) for prompt, emitted in children]
    bench.run()
    for child, (prompt, emitted) in zip(keys, children, strict=True):
        alone = make_bench()
        assert bench.answer(child) == alone.generate(prompt, emitted=emitted, **RUN)
        place = (len(prompt), 66)  # of its first row, where the parent had one of its own before
        assert np.array_equal(bench.model.logits[place][-1], alone.model.logits[place][0])


def test_no_hypothesis_of_a_beam_search_leaves_blocks_that_a_longer_prompt_finds(make_bench):
    search = BeamSearch(width=3, num_answers=3)
    first = make_bench()
    key = first.submit(PROMPT[:40], **{**RUN, "max_tokens": 50, "temperature": 0.0}, beam=search)
    first.run()
    conversations = [[*PROMPT[:40], *beam.tokens] for beam in first.beams[key]]
    assert all(len(conversation) == 90 for conversation in conversations)
    for conversation in conversations:
        fresh = make_bench()
        for bench in (first, fresh):
            bench.model.logits.clear()
            bench.generate(conversation, **{**RUN, "max_tokens": 3})
        assert same_logits(fresh, first, 90, range(90, 93))


def test_a_partly_shared_block_is_shared_where_only_prompts_have_a_part_in_it(make_bench):
    bench = make_bench()
    bench.generate(PROMPT, **{**RUN, "max_tokens": 1})  # the token drawn is never computed
    longer = [*PROMPT, *range(11, 48)]
    shorter = [*PROMPT[:42], 7, 7, 7]
    for prompt, hit in ((longer, 45), (shorter, 42), (longer[:47], 46)):
        before = bench.engine.stats.prefix_hit_tokens
        fresh = make_bench()
        fresh.generate(prompt, **RUN)
        bench.model.logits.clear()
        bench.generate(prompt, **RUN)
        assert bench.engine.stats.prefix_hit_tokens - before == hit
        assert same_logits(fresh, bench, len(prompt), range(len(prompt), len(prompt) + 40))


def test_a_block_that_an_answer_has_a_part_in_is_shared_by_prompts_as_long_alone(make_bench):
    bench = make_bench()
    answer = bench.generate(PROMPT, **{**RUN, "max_tokens": 9})
    bench.generate([*PROMPT, *answer, 5], **RUN)
    assert bench.engine.stats.prefix_hit_tokens == 32, "whole blocks of the prompt"
    alone = make_bench()
    alone.generate(PROMPT, emitted=[*answer[:8], 3], **RUN)
    bench.model.logits.clear()
    bench.generate(PROMPT, emitted=[*answer[:8], 3], **RUN)
    assert bench.engine.stats.prefix_hit_tokens == 32 + 45
    assert bench.model.logits.keys() == alone.model.logits.keys()
    assert same_logits(alone, bench, 45, range(54, 85))
