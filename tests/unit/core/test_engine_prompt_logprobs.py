"""Log probabilities of the prompt: exact, in order, complete, however the prompt came to be computed."""

from __future__ import annotations

import pytest
from engine_bench import Bench

from engine.config import EngineConfig
from engine.scheduling.request import RequestKind
from wire.errors import SpliceError

PROMPT = [(7 * i * i + 3 * i + 1) % 60 for i in range(45)]
RUN = {"max_tokens": 6, "temperature": 0.0, "prompt_logprobs": 3}


def scored(bench, prompt=PROMPT, **options):
    key = bench.submit(prompt, **{**RUN, **options})
    bench.run()
    return bench.scored[key], bench.answer(key)


def by_single_steps(make_bench):
    """Position by position: what a decode step says about the token behind it."""
    found = []
    for length in range(1, len(PROMPT)):
        bench = make_bench()
        key = bench.submit(PROMPT[:length], max_tokens=1, temperature=0.0, logprobs=60)
        bench.run()
        one = bench.rows[key][0].logprobs[0]
        figures = dict(zip(one.top_ids, one.top_logprobs, strict=True))
        found.append((figures[PROMPT[length]], one.top_ids[:3], one.top_logprobs[:3]))
    return found


def test_they_are_what_each_position_says_on_its_own(make_bench):
    figures, _ = scored(make_bench())
    assert [(one.logprob, one.top_ids, one.top_logprobs) for one in figures] == by_single_steps(make_bench)


@pytest.mark.parametrize("limits", [{"max_num_batched_tokens": 20}, {"max_scored_tokens": 4}, {"max_scored_tokens": 9}])
def test_chunks_change_nothing(make_bench, limits):
    assert scored(make_bench(**limits)) == scored(make_bench())


def test_no_step_computes_more_rows_of_logits_than_it_may(make_bench):
    bench = make_bench(max_scored_tokens=12)
    for _ in range(3):
        bench.submit(PROMPT, **RUN)
    bench.run()
    rows = [sum(part.num_logits for part in batch.slices if part.wants_all_logits) for batch in bench.model.batches]
    assert 0 < max(rows) <= 12
    assert len(bench.scored) == 3


def test_a_cached_prefix_is_computed_again_for_them_and_read_by_others(make_bench):
    bench = make_bench()
    expected = scored(make_bench())
    bench.generate(PROMPT, max_tokens=2)
    assert scored(bench) == expected
    before = bench.engine.stats.prompt_tokens
    bench.generate(PROMPT, max_tokens=2)
    assert bench.engine.stats.prompt_tokens - before <= 4


def test_a_batch_and_a_preemption_change_nothing_and_repeat_nothing(make_bench):
    expected = scored(make_bench(), max_tokens=30)
    bench = make_bench(num_blocks=50, max_scored_tokens=4, max_num_batched_tokens=32)
    senior = [bench.submit([i, *PROMPT], max_tokens=60, temperature=0.0, ignore_eos=True) for i in range(2)]
    key = bench.submit(PROMPT, **{**RUN, "max_tokens": 30})
    bench.run()
    assert bench.engine.stats.preemptions
    assert (bench.scored[key], bench.answer(key)) == expected
    assert all(len(bench.answer(each)) == 60 for each in senior)


def test_prefill_reports_them_before_its_token(make_bench):
    bench = make_bench(max_scored_tokens=8)
    figures, _ = scored(bench, kind=RequestKind.PREFILL)
    assert figures == scored(make_bench())[0]


def test_they_are_refused_where_the_prompt_is_not_computed(make_bench):
    with pytest.raises(SpliceError, match="prompt_logprobs"):
        make_bench().submit(PROMPT, kind=RequestKind.RESERVE, **RUN)


def test_a_prompt_of_one_token_has_none(make_bench):
    bench = make_bench()
    key = bench.submit([5], **RUN)
    bench.run()
    assert key not in bench.scored
    assert len(bench.answer(key)) == 6


def test_damaged_logits_inside_the_prompt_fail_that_request_alone(make_bench):
    bench = make_bench()
    forward = bench.model.forward

    def damaged(batch):
        logits, row = forward(batch), 0
        for part in batch.slices:
            if part.wants_all_logits and part.start <= 10 < part.start + len(part.token_ids):
                logits[row + 10 - part.start, 3] = float("nan")
            row += part.num_logits
        return logits

    bench.model.forward = damaged
    bad = bench.submit(PROMPT, **RUN)
    good = bench.submit(PROMPT, max_tokens=4, temperature=0.0)
    bench.run()
    assert list(bench.failed) == [bad]
    assert "position 10" in bench.failed[bad].message
    assert len(bench.answer(good)) == 4


def test_a_scoring_limit_below_a_block_is_a_bad_setting():
    with pytest.raises(SpliceError, match="max_scored_tokens"):
        Bench(EngineConfig(num_blocks=10, block_tokens=32, max_model_len=100, max_scored_tokens=31))
