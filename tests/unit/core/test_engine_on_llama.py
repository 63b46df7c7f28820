"""The same promises over real attention and real matrix products, in bf16 and float32."""

from __future__ import annotations

import pytest
import torch
from engine_bench import Bench
from one_answer import check_one_answer
from recorded_model import RecordedModel
from weights_by_name import WeightsByName

from engine.config import EngineConfig
from engine.models.decoder import Decoder
from engine.ops.registry import select_ops
from engine.rope_spec import RopeSpec
from engine.scheduling.request import RequestKind
from engine.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec

LAYER = LayerSpec(AttentionSpec(4, 2, 12, RopeSpec(10000.0), scale=12**-0.5), MlpSpec(72))
SPEC = ModelSpec("llama", 48, 320, 512, 1e-5, (LAYER, LAYER), tie_embeddings=True)
PROMPT = [(7 * i * i + 3 * i + 1) % 300 for i in range(75)]
RUN = {"ignore_eos": True, "max_tokens": 40, "temperature": 0.9, "seed": 11}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def make_llama_bench(request):
    def make(**sizes):
        config = EngineConfig(**{"num_blocks": 64, "max_model_len": 256, **sizes})
        return Bench(config, model=Decoder(SPEC, select_ops(request.param), WeightsByName(request.param), 256))

    return make


def test_a_llama_gives_the_same_tokens_under_every_schedule(make_llama_bench):
    alone = check_one_answer(make_llama_bench, PROMPT, RUN)

    tight = make_llama_bench(num_blocks=8, enable_prefix_caching=False)
    keys = [tight.submit(PROMPT, **{**RUN, "max_tokens": 80}) for _ in range(2)]
    tight.run()
    assert tight.engine.stats.preemptions > 0
    assert [tight.answer(key)[:40] for key in keys] == [alone, alone]
    assert tight.answer(keys[0]) == tight.answer(keys[1])


def test_a_llama_handed_over_gives_the_same_tokens(make_llama_bench):
    alone = make_llama_bench().generate(PROMPT, **RUN)
    source, dest = make_llama_bench(), make_llama_bench()
    reserved = dest.submit(PROMPT, kind=RequestKind.RESERVE, **RUN)
    dest.run()
    key = source.submit(PROMPT, kind=RequestKind.PREFILL, **RUN)
    source.run()
    for blocks in source.computed[key]:
        for index, block in enumerate(blocks.block_ids, start=blocks.first_block):
            dest.kv_cache[dest.reserved[reserved].block_ids[index]] = source.kv_cache[block]
    dest.engine.activate(reserved, source.answer(key))
    dest.run()
    assert source.answer(key) + dest.answer(reserved) == alone


def recorded(bench):
    return Bench(bench.config, model=RecordedModel(bench.model))


@pytest.mark.parametrize("host_blocks", [0, 20], ids=["recompute", "swap"])
def test_a_llama_preempted_gives_the_same_logits_as_one_that_runs_through(make_llama_bench, host_blocks):
    alone = recorded(make_llama_bench(num_blocks=12))
    whole = alone.generate(PROMPT, **{**RUN, "max_tokens": 80})
    once = {place: row.tobytes() for place, [row] in alone.model.logits.items()}

    tight = recorded(make_llama_bench(num_blocks=8, num_host_blocks=host_blocks))
    keys = [tight.submit(PROMPT, **{**RUN, "max_tokens": 80}, root=bytes([i] * 16)) for i in range(3)]
    tight.run()
    stats = tight.engine.stats
    assert stats.preemptions > 0
    assert (stats.swapped_in_blocks > 0) == (host_blocks > 0)
    assert tight.model.logits.keys() == once.keys()
    assert all(row.tobytes() == once[place] for place, rows in tight.model.logits.items() for row in rows)
    assert [tight.answer(key) for key in keys] == [whole] * 3


def test_log_probabilities_of_a_prompt_are_the_same_in_any_chunks(make_llama_bench):
    def scored(**sizes):
        bench = make_llama_bench(**sizes)
        key = bench.submit(PROMPT, **RUN, prompt_logprobs=5)
        bench.run()
        return bench.scored[key]

    whole = scored(max_scored_tokens=128)
    assert len(whole) == len(PROMPT) - 1
    assert scored(max_scored_tokens=32) == whole
    assert scored(max_num_batched_tokens=35, max_num_seqs=2) == whole
