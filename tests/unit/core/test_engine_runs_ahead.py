"""A step is launched before the one before it is known, and nobody can tell by the tokens."""

from __future__ import annotations

import pytest
from ahead_model import AheadModel
from engine_bench import EOS, Bench
from history_model import HistoryModel

from engine.config import EngineConfig
from engine.scheduling.request import Request, RequestKind, RequestStatus
from wire.sampling import FinishReason

PROMPT = [(7 * i * i + 3 * i + 1) % 59 for i in range(21)]
GREEDY = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}
DRAWN = {"ignore_eos": True, "temperature": 0.9, "seed": 5, "top_p": 0.9, "max_tokens": 12}
SIZES = {"num_blocks": 60, "block_tokens": 4, "max_model_len": 100, "max_num_seqs": 8, "max_num_batched_tokens": 32}


def ahead(**sizes) -> Bench:
    return Bench(EngineConfig(**{**SIZES, "eos_token_ids": (EOS,), **sizes}), AheadModel(HistoryModel()))


def in_turn(**sizes) -> Bench:
    return Bench(EngineConfig(**{**SIZES, "eos_token_ids": (EOS,), **sizes}), HistoryModel())


def rows_of(bench: Bench) -> int:
    return sum(len(part.token_ids) for batch in bench.model.batches for part in batch.slices)


def test_every_step_but_the_first_is_launched_before_the_one_before_it_is_waited_for():
    bench = ahead()
    key = bench.submit(PROMPT, **GREEDY)
    bench.run()
    assert bench.model.calls == ["launch", *["launch", "wait"] * 11, "wait"]
    assert bench.finish(key) is FinishReason.LENGTH
    assert rows_of(bench) == len(PROMPT) + 11, "the last token is known to be the last: nothing follows it"


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, {**DRAWN, "top_k": 9}], ids=["greedy", "drawn", "top k"])
@pytest.mark.parametrize(
    "sizes", [{}, {"num_blocks": 26}, {"max_num_batched_tokens": 11}], ids=["roomy", "tight", "chunks"]
)
def test_tokens_are_those_of_steps_taken_in_turn(sampling, sizes):
    answers = []
    for bench in (in_turn(**sizes), ahead(**sizes)):
        keys = [bench.submit(PROMPT[i : i + 13 + i], **{**sampling, "seed": i, "max_tokens": 9 + i}) for i in range(6)]
        bench.run()
        answers.append([(bench.answer(key), bench.finish(key)) for key in keys])
        assert bench.pool.num_free == bench.config.num_blocks
    assert answers[0] == answers[1]


def test_an_answer_that_stops_early_costs_one_row_and_its_neighbours_nothing():
    alone = in_turn().generate(PROMPT, **GREEDY)
    stop = alone[4]
    length = alone.index(stop) + 1
    bench = ahead()
    stopped = bench.submit(PROMPT, **GREEDY, stop_token_ids=(stop,))
    bench.run()
    assert bench.answer(stopped) == alone[:length]
    assert bench.finish(stopped) is FinishReason.STOP
    assert rows_of(bench) == len(PROMPT) + length, "the row that was on its way, and no more"
    both = ahead()
    keys = [both.submit(PROMPT, **GREEDY, stop_token_ids=ids) for ids in ((stop,), ())]
    both.run()
    assert [both.answer(key) for key in keys] == [alone[:length], alone]


def test_who_wants_more_than_a_token_is_computed_in_turn_and_others_go_on_ahead_afterwards():
    bench = ahead()
    key = bench.submit(PROMPT, **GREEDY)
    bench.step()
    bench.step()
    demanding = bench.submit(PROMPT[2:], **{**GREEDY, "max_tokens": 3}, logprobs=2)
    bench.run()
    turn = in_turn()
    turn_key, turn_demanding = (
        turn.submit(PROMPT, **GREEDY),
        turn.submit(PROMPT[2:], **{**GREEDY, "max_tokens": 3}, logprobs=2),
    )
    turn.run()
    assert bench.answer(key) == turn.answer(turn_key)
    assert [row.logprobs for row in bench.rows[demanding]] == [row.logprobs for row in turn.rows[turn_demanding]]
    assert bench.model.calls[-3:] == ["launch", "wait", "wait"]


def test_a_client_that_leaves_hears_no_more_and_its_memory_drains_until_no_copy_is_left():
    bench = ahead()
    key = bench.submit(PROMPT, **GREEDY)
    bench.step()
    bench.step()
    heard = bench.answer(key)
    bench.engine.abort(key, draining=True)
    bench.run()
    assert bench.answer(key) == heard
    assert bench.engine._scheduler.requests[key].status is RequestStatus.DRAINING
    bench.engine.drained(key)
    assert bench.pool.num_free == bench.config.num_blocks


def test_no_block_is_named_after_a_token_nobody_knows():
    bench = ahead(max_num_batched_tokens=12, max_num_seqs=4)
    first = bench.submit(PROMPT[:11], **{**GREEDY, "max_tokens": 20})
    bench.step()
    answer = in_turn().generate(PROMPT[:11], **{**GREEDY, "max_tokens": 20})
    for count in range(1, 18):  # each shares with the first what it is just about to know
        bench.submit([*PROMPT[:11], *answer[:count], 1], **{**GREEDY, "max_tokens": 1})
        bench.step()
        for request in bench.engine._scheduler.requests.values():
            named = len(request._hashes)
            anew = Request(request.key, list(request.tokens), request.num_prompt_tokens, request.sampling)
            assert request._hashes == anew.hashes(named, 4)
            assert named * 4 <= request.num_known_tokens
    bench.run()
    assert bench.answer(first) == answer


def test_a_prompt_on_its_way_is_not_put_back_for_a_more_senior_request():
    bench = ahead(num_blocks=5, max_model_len=20)
    prefill = bench.submit(PROMPT[:16], kind=RequestKind.PREFILL, **GREEDY)
    bench.step()
    urgent = bench.submit(PROMPT[1:17], priority=-9, **{**GREEDY, "max_tokens": 2})
    bench.run()
    assert bench.rows[prefill][0].handed_off
    bench.engine.release_hold(prefill)
    bench.run()
    assert len(bench.answer(urgent)) == 2


def test_blocks_are_announced_once_they_are_computed_and_not_before():
    bench = ahead(max_num_batched_tokens=11, max_num_seqs=2)
    key = bench.submit(PROMPT, kind=RequestKind.PREFILL, **GREEDY)
    bench.step()
    assert key not in bench.computed
    bench.step()
    assert [each.num_tokens for each in bench.computed[key]] == [8]
    bench.run()
    assert bench.computed[key][-1].is_last


def test_a_row_that_is_not_finite_fails_its_request_alone():
    class Damaged(HistoryModel):
        def forward(self, batch):
            logits = super().forward(batch)
            for row, part in zip(logits, batch.slices, strict=True):
                if part.start == 24:
                    row[:] = float("nan")
            return logits

    bench = Bench(EngineConfig(**SIZES), AheadModel(Damaged()))
    bad = bench.submit(PROMPT, **GREEDY)
    good = bench.submit(PROMPT[:5], **{**GREEDY, "max_tokens": 6})
    bench.run()
    assert list(bench.failed) == [bad]
    assert len(bench.answer(bad)) == 4
    assert bench.answer(good) == in_turn(eos_token_ids=()).generate(PROMPT[:5], **{**GREEDY, "max_tokens": 6})
    assert bench.pool.num_free == bench.config.num_blocks


def test_a_batch_that_cannot_be_launched_is_computed_in_turn():
    class Refusing(AheadModel):
        def forward(self, batch):
            if any(part.token_ids[-1] < 0 for part in batch.slices):
                raise RuntimeError("out of memory")
            return super().forward(batch)

    bench = Bench(EngineConfig(**{**SIZES, "eos_token_ids": (EOS,)}), Refusing(HistoryModel()))
    keys = [bench.submit(PROMPT[i:], **GREEDY) for i in range(3)]
    bench.run()
    assert [bench.answer(key) for key in keys] == [in_turn().generate(PROMPT[i:], **GREEDY) for i in range(3)]


def test_it_can_be_switched_off():
    bench = ahead(async_scheduling=False)
    bench.generate(PROMPT, **GREEDY)
    assert "wait" not in bench.model.calls


@pytest.mark.parametrize("position", range(12, 20))
def test_a_row_that_is_not_finite_fails_even_a_request_that_was_preempted_meanwhile(position):
    class Damaged(HistoryModel):
        def forward(self, batch):
            logits = super().forward(batch)
            for row, part in zip(logits, batch.slices, strict=True):
                if part.num_prompt_tokens == 8 and part.start + len(part.token_ids) == position:
                    row[:] = float("nan")
            return logits

    sizes = {**SIZES, "num_blocks": 8, "max_model_len": 32}
    bench = Bench(EngineConfig(**sizes), AheadModel(Damaged()))
    good, bad = bench.submit(PROMPT[:9], **GREEDY), bench.submit(PROMPT[3:11], **GREEDY)
    bench.run()
    assert list(bench.failed) == [bad]
    assert bench.answer(good) == in_turn().generate(PROMPT[:9], **GREEDY)
    assert bench.pool.num_free == 8
