"""The tokens of a request depend on the request alone."""

from __future__ import annotations

import pytest

from engine.scheduling.request import RequestKind
from wire.sampling import FinishReason

GREEDY = {"temperature": 0.0, "max_tokens": 20, "ignore_eos": True}
SAMPLED = {
    "temperature": 0.9,
    "top_p": 0.95,
    "top_k": 40,
    "min_p": 0.01,
    "repetition_penalty": 1.1,
    "frequency_penalty": 0.2,
    "presence_penalty": 0.1,
    "min_tokens": 5,
    "seed": 1234567890123,
    "max_tokens": 20,
    "ignore_eos": True,
}
PROMPT = [(7 * i * i + 3 * i + 1) % 59 for i in range(45)]
pytestmark = pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])


def other_prompt(i):
    return [(11 * i + 5 * j * j + j) % 59 for j in range(3 + 5 * i % 37)]


def test_same_tokens_alone_and_beside_fifteen_others(make_bench, sampling):
    alone = make_bench().generate(PROMPT, **sampling)
    bench = make_bench()
    others = [bench.submit(other_prompt(i), **{**sampling, "seed": i}) for i in range(8)]
    key = bench.submit(PROMPT, **sampling)
    others += [bench.submit(other_prompt(i), **{**sampling, "seed": i}) for i in range(8, 15)]
    bench.run()
    assert bench.engine.stats.max_batch_rows == 16
    assert len(alone) == 20
    assert bench.answer(key) == alone
    assert all(len(bench.answer(other)) == 20 for other in others)


@pytest.mark.parametrize("budget", [4, 5, 7, 13, 31, 44])
def test_same_tokens_chunked_at_odd_sizes(make_bench, sampling, budget):
    whole = make_bench().generate(PROMPT, **sampling)
    bench = make_bench(max_num_batched_tokens=budget, max_num_seqs=1)
    assert bench.generate(PROMPT, **sampling) == whole
    prompt_steps = [batch.slices[0] for batch in bench.model.batches if batch.slices[0].start < len(PROMPT)]
    assert len(prompt_steps) > 1
    assert all((part.start + len(part.token_ids)) % 4 == 0 for part in prompt_steps[:-1])


@pytest.mark.parametrize("caching", [True, False])
def test_same_tokens_after_preemption(make_bench, sampling, caching):
    prompts = [PROMPT[:9], PROMPT[1:14], PROMPT[2:9]]
    expected = [make_bench().generate(prompt, **sampling) for prompt in prompts]
    bench = make_bench(num_blocks=14, max_model_len=56, enable_prefix_caching=caching)
    keys = [bench.submit(prompt, **sampling) for prompt in prompts]
    bench.run()
    assert bench.engine.stats.preemptions > 0
    assert [bench.answer(key) for key in keys] == expected


def test_same_tokens_with_a_prefix_cache_hit(make_bench, sampling):
    cold = make_bench().generate(PROMPT, **sampling)
    bench = make_bench()
    bench.generate([*PROMPT[:30], 1, 2, 3], **sampling)
    key = bench.submit(PROMPT, **sampling)
    bench.run()
    assert bench.rows[key][0].cached_tokens == 30
    assert bench.answer(key) == cold


@pytest.mark.parametrize("emitted", range(20))
def test_same_tokens_redispatched_at_any_index(make_bench, sampling, emitted):
    whole = make_bench().generate(PROMPT, **sampling)
    bench = make_bench()
    key = bench.submit(PROMPT, emitted=whole[:emitted], **sampling)
    bench.run()
    assert bench.rows[key][0].seq == emitted
    assert bench.answer(key) == whole[emitted:]
    assert bench.finish(key) is FinishReason.LENGTH


def test_a_redispatch_of_a_complete_answer_ends_without_a_token(make_bench, sampling):
    whole = make_bench().generate(PROMPT, **sampling)
    bench = make_bench()
    key = bench.submit(PROMPT, emitted=whole, **sampling)
    bench.run()
    assert [(row.seq, row.tokens, row.finish) for row in bench.rows[key]] == [(20, (), FinishReason.LENGTH)]


@pytest.mark.parametrize("length", [1, 4, 31, 32, 33, 45])
@pytest.mark.parametrize("warm", [False, True])
def test_prefill_and_reserve_equal_generate(make_bench, sampling, length, warm):
    prompt = PROMPT[:length]
    whole = make_bench().generate(prompt, **sampling)
    source, dest = make_bench(max_num_batched_tokens=20, max_num_seqs=4), make_bench()
    if warm:
        dest.generate([*prompt[: length // 2], 58, 57], **sampling)
    reserved = dest.submit(prompt, kind=RequestKind.RESERVE, **sampling)
    dest.run()
    reservation = dest.reserved[reserved]
    assert (reservation.cached_tokens > 0) == (warm and length >= 8)
    key = source.submit(prompt, kind=RequestKind.PREFILL, skip_tokens=reservation.cached_tokens, **sampling)
    source.run()

    copied = reservation.skip_blocks
    for blocks in source.computed[key]:
        assert blocks.first_block == copied
        for index, block in enumerate(blocks.block_ids, start=blocks.first_block):
            dest.kv_cache[reservation.block_ids[index]] = source.kv_cache[block]
        copied += len(blocks.block_ids)
    assert copied == len(reservation.block_ids)
    assert source.computed[key][-1].is_last
    assert source.computed[key][-1].num_tokens == length

    (row,) = source.rows[key]
    assert row.handed_off
    dest.engine.activate(reserved, list(row.tokens))
    source.engine.release_hold(key)
    source.engine.check()
    dest.run()
    assert [*row.tokens, *dest.answer(reserved)] == whole
    assert dest.rows[reserved][0].seq == 1


def test_one_foreign_row_of_kv_changes_the_tokens(make_bench, sampling):
    """The tests above can fail: the model does read what is in the blocks."""
    whole = make_bench().generate(PROMPT, **sampling)
    bench = make_bench()
    key = bench.submit(PROMPT, **sampling)
    bench.step()
    request = bench.engine._scheduler.requests[key]
    bench.kv_cache[request.block_ids[3], 0, 0, 0, 2, 0] += 1
    bench.run()
    assert bench.answer(key) != whole
