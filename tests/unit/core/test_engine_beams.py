"""Beam search is exact too: alone, beside others, short of memory, handed over; and it leaves nothing behind."""

from __future__ import annotations

import pytest
import torch

from engine.sampling.beam_search import Beams
from engine.scheduling.request import RequestKind
from wire.errors import SpliceError
from wire.sampling import BeamSearch, EarlyStopping, FinishReason, TokenLogprobs

PROMPT = [(7 * i * i + 3 * i + 1) % 60 for i in range(21)]
ENDS = (3, 11, 29, 41)


def search(bench, prompt=PROMPT, *, width=4, max_tokens=16, kind=RequestKind.GENERATE, ends=ENDS, **options):
    beam = BeamSearch(width=width, num_answers=width, **options.pop("beam", {}))
    sampling = {"temperature": 0.0, "stop_token_ids": ends, "ignore_eos": True, "max_tokens": max_tokens, **options}
    return bench.submit(prompt, kind=kind, beam=beam, **sampling)


def alone(make_bench, prompt=PROMPT, **options):
    bench = make_bench()
    key = search(bench, prompt, **options)
    bench.run()
    assert bench.rows.get(key) is None, "nothing is shown before the end"
    return bench.beams[key]


def test_the_best_of_exhaustive_search_is_found_when_nothing_is_pruned():
    """A model of three tokens, every answer three long: a wide enough search sees all 27 of them."""
    figures = {}

    def options(prefix):
        if prefix not in figures:
            logits = torch.randn(3, generator=torch.Generator().manual_seed(hash(prefix) % 1000)).double()
            order = logits.argsort(descending=True)
            figures[prefix] = TokenLogprobs(0.0, tuple(order.tolist()), tuple(logits.log_softmax(-1)[order].tolist()))
        return figures[prefix]

    beams = Beams(BeamSearch(width=27, num_answers=27), max_tokens=3, min_tokens=0, ends=(), num_top=None)
    while beams.running:
        beams.extend([options(prefix.tokens) for prefix in beams.running])
    totals = {}
    for a in range(3):
        for b in range(3):
            for c in range(3):
                total, prefix = 0.0, ()
                for token in (a, b, c):
                    row = options(prefix)
                    total += row.top_logprobs[row.top_ids.index(token)]
                    prefix = (*prefix, token)
                totals[prefix] = total / 3
    assert [beam.tokens for beam in beams.answers] == sorted(totals, key=lambda tokens: -totals[tokens])


def test_equal_totals_are_ordered_by_prefix_and_token():
    beams = Beams(BeamSearch(width=2, num_answers=2), max_tokens=2, min_tokens=0, ends=(), num_top=None)
    beams.extend([TokenLogprobs(0.0, (5, 2, 9, 1), (-1.0, -1.0, -1.0, -1.0))])
    assert [prefix.tokens for prefix in beams.running] == [(1,), (2,)]
    beams.extend([TokenLogprobs(0.0, (8, 7, 6, 5), (-1.0, -1.0, -2.0, -2.0))] * 2)
    assert [beam.tokens for beam in beams.answers] == [(1, 7), (1, 8)]


@pytest.mark.parametrize("early_stopping", list(EarlyStopping))
def test_neighbours_chunks_and_caches_change_nothing(make_bench, early_stopping):
    beam = {"early_stopping": early_stopping, "length_penalty": 0.7}
    expected = alone(make_bench, beam=beam, logprobs=2)
    for sizes in ({}, {"max_num_batched_tokens": 19}, {"enable_prefix_caching": False}):
        bench = make_bench(**sizes)
        bench.generate(PROMPT, max_tokens=3)
        others = [bench.submit([i, *PROMPT[i:]], max_tokens=25, seed=i, temperature=1.0) for i in range(5)]
        keys = [search(bench, beam=beam, logprobs=2) for _ in range(2)]
        bench.run()
        assert [bench.beams[key] for key in keys] == [expected, expected]
        assert all(bench.answer(other) for other in others)
        assert bench.pool.num_free == bench.pool.num_blocks


def test_figures_of_each_token_are_the_models_own(make_bench):
    best = alone(make_bench, logprobs=3)[0]
    for index, figures in enumerate(best.logprobs):
        bench = make_bench()
        key = bench.submit([*PROMPT, *best.tokens[:index]], max_tokens=1, temperature=0.0, logprobs=60)
        bench.run()
        one = bench.rows[key][0].logprobs[0]
        assert figures.logprob == dict(zip(one.top_ids, one.top_logprobs, strict=True))[best.tokens[index]]
        assert (figures.top_ids, figures.top_logprobs) == (one.top_ids[:3], one.top_logprobs[:3])
    total = sum(figures.logprob for figures in best.logprobs)
    assert best.score == pytest.approx(total / len(best.tokens), abs=1e-12)


def test_min_tokens_keeps_every_answer_that_long(make_bench):
    ends = tuple(range(0, 60, 3))
    assert min(len(beam.tokens) for beam in alone(make_bench, ends=ends)) <= 6
    beams = alone(make_bench, min_tokens=6, ends=ends)
    assert min(len(beam.tokens) for beam in beams) > 6
    assert all(token not in ends for beam in beams for token in beam.tokens[:6])
    assert FinishReason.STOP in {beam.finish for beam in beams}


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("num_blocks", [40, 48, 75])
def test_searches_that_do_not_fit_side_by_side_take_turns_and_finish(make_bench, num_blocks, caching):
    prompts = [[i, *PROMPT[:6]] for i in range(4)]
    # Answers of 30 tokens by four beams: 10 blocks of 4 each, 40 without sharing, so that a single search just fits.
    options = {"max_tokens": 30, "ends": ()}
    expected = [alone(make_bench, prompt, **options) for prompt in prompts]
    bench = make_bench(num_blocks=num_blocks, max_model_len=60, max_num_seqs=7, enable_prefix_caching=caching)
    keys = [search(bench, prompt, **options) for prompt in prompts]
    lone = bench.submit(PROMPT, max_tokens=20, ignore_eos=True)
    bench.run()
    assert [bench.beams[key] for key in keys] == expected
    assert len(bench.answer(lone)) == 20
    assert bench.pool.num_free == num_blocks


@pytest.mark.parametrize("host_blocks", [0, 12])
@pytest.mark.parametrize("num_blocks", [18, 19, 23, 30])
def test_searches_that_fit_only_because_their_beams_share_the_prompt_finish(make_bench, num_blocks, host_blocks):
    """A prompt of 6 blocks and four beams of 3 more each: 18 blocks, 36 without sharing."""
    prompts = [[*range(9, 0, -1), *range(12), i, i + 1, i + 2] for i in range(4)]
    options = {"max_tokens": 12, "ends": ()}
    expected = [alone(make_bench, prompt, **options) for prompt in prompts]
    bench = make_bench(num_blocks=num_blocks, max_model_len=60, max_num_seqs=7, num_host_blocks=host_blocks)
    keys = [search(bench, prompt, **options) for prompt in prompts]
    lone = [bench.submit(prompt, max_tokens=20, ignore_eos=True) for prompt in prompts]
    bench.run()
    assert [bench.beams[key] for key in keys] == expected
    assert [len(bench.answer(key)) for key in lone] == [20] * 4
    assert bench.pool.num_free == num_blocks


def hand_over(make_bench, **options):
    """A search whose prompt another engine computed, as decode and prefill share it."""
    source, bench = make_bench(), make_bench()
    key = search(bench, kind=RequestKind.RESERVE, **options)
    bench.run()
    given = source.submit(
        PROMPT, kind=RequestKind.PREFILL, max_tokens=16, temperature=0.0, ignore_eos=True, logprobs=20
    )
    source.run()
    for blocks in source.computed[given]:
        for index, block in enumerate(blocks.block_ids, start=blocks.first_block):
            bench.kv_cache[bench.reserved[key].block_ids[index]] = source.kv_cache[block]
    return bench, key, source.rows[given][0]


def test_a_search_goes_on_from_a_prompt_computed_elsewhere(make_bench):
    bench, key, row = hand_over(make_bench)
    bench.engine.activate(key, list(row.tokens), row.logprobs)
    bench.run()
    assert bench.beams[key] == alone(make_bench)
    assert bench.engine.stats.prompt_tokens == 0


def test_a_search_that_ends_with_its_first_tokens_answers_at_once(make_bench):
    every = tuple(range(61))
    bench, key, row = hand_over(make_bench, ends=every, width=2)
    figures = row.logprobs[0]
    enough = TokenLogprobs(figures.logprob, every, tuple(-1.0 - token for token in every))
    bench.engine.activate(key, list(row.tokens), (enough,))
    bench.run()
    assert [beam.tokens for beam in bench.beams[key]] == [(0,), (1,)]
    assert bench.pool.num_free == bench.pool.num_blocks


@pytest.mark.parametrize("logprobs", [(), (TokenLogprobs(-1.0, (1, 2), (-1.0, -2.0)),)])
def test_too_few_first_tokens_are_refused(make_bench, logprobs):
    bench, key, row = hand_over(make_bench)
    with pytest.raises(SpliceError, match="first tokens to choose from"):
        bench.engine.activate(key, list(row.tokens), logprobs)
    assert bench.engine.abort(key)
    assert bench.pool.num_free == bench.pool.num_blocks


@pytest.mark.parametrize("steps", [0, 1, 2, 7])
def test_an_aborted_search_leaves_nothing(make_bench, steps):
    bench = make_bench()
    key, other = search(bench), bench.submit(PROMPT, max_tokens=12, ignore_eos=True)
    for _ in range(steps):
        bench.step()
    assert bench.engine.abort(key)
    assert not bench.engine.abort(key)
    bench.run()
    assert key not in bench.beams
    assert len(bench.answer(other)) == 12
    assert bench.pool.num_free == bench.pool.num_blocks


def test_an_aborted_reservation_drains(make_bench):
    bench, key, _ = hand_over(make_bench)
    assert bench.engine.abort(key, draining=True)
    bench.engine.check()
    assert bench.pool.num_free < bench.pool.num_blocks
    bench.engine.drained(key)
    assert bench.pool.num_free == bench.pool.num_blocks


@pytest.mark.parametrize("raising", [False, True])
def test_a_beam_that_cannot_be_computed_ends_its_search_alone(make_bench, raising):
    bench = make_bench()
    forward, calls = bench.model.forward, []

    def damaged(batch):
        logits = forward(batch)
        for index, part in enumerate(batch.slices):
            if part.start == 24 and len(part.token_ids) == 1:
                calls.append(index)
                if raising:
                    raise RuntimeError("damaged")
                logits[sum(each.num_logits for each in batch.slices[:index])] = torch.nan
        return logits

    bench.model.forward = damaged
    bad, good = search(bench), bench.submit(PROMPT[:5], max_tokens=12, ignore_eos=True)
    bench.run()
    assert calls
    assert list(bench.failed) == [bad]
    assert bad not in bench.beams
    assert len(bench.answer(good)) == 12
    assert bench.pool.num_free == bench.pool.num_blocks


def test_what_never_fits_is_refused_at_once(make_bench):
    bench = make_bench(max_num_seqs=3)
    with pytest.raises(SpliceError, match="num_branches is 4, expected 1 to 3"):
        search(bench)
    bench = make_bench(num_blocks=50, max_model_len=200)
    with pytest.raises(SpliceError, match="fewer branches or tokens"):
        search(bench, max_tokens=150)
    with pytest.raises(SpliceError, match="begins where it goes on"):
        search(bench, kind=RequestKind.PREFILL)
    assert not bench.engine.requests()
