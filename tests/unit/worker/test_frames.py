"""One frame carries the rows of a step in columns that fit together."""

from __future__ import annotations

from engine.steps.step_output import BeamsFound, ScoredPrompt, TokenRow
from wire.convert import beams_from_proto
from wire.sampling import Beam, FinishReason, TokenLogprobs
from worker.frames import beam_answer, step_frame


def test_rows_come_back_from_the_columns_in_order() -> None:
    rows = [
        TokenRow((1, 1), 4, (7,), FinishReason.NONE, 32, None, True),
        TokenRow((2, 3), 0, (), FinishReason.LENGTH, 0),
        TokenRow((3, 1), 9, (5, 6), FinishReason.STOP, 0),
    ]
    frame = step_frame(11, rows)
    assert frame.step == 11
    assert list(zip(frame.request, frame.attempt, frame.seq, frame.num_tokens, frame.finish, strict=True)) == [
        (1, 1, 4, 1, 0),
        (2, 3, 0, 0, 2),
        (3, 1, 9, 2, 1),
    ]
    assert list(frame.tokens) == [7, 5, 6]
    assert list(frame.handed_off) == [True, False, False]
    assert list(frame.cached_tokens) == [32, 0, 0]
    assert not frame.logprobs


def test_who_asked_for_log_probabilities_finds_them_beside_its_own_tokens() -> None:
    figures = (TokenLogprobs(-0.5, (7, 8), (-0.5, -1.0)),)
    rows = [TokenRow((1, 1), 0, (4, 5), FinishReason.NONE, 0), TokenRow((2, 1), 0, (7,), FinishReason.NONE, 0, figures)]
    frame = step_frame(1, rows)
    assert len(frame.logprobs) == len(frame.tokens) == 3
    assert frame.logprobs[2].logprob == -0.5
    assert list(frame.logprobs[2].top_ids) == [7, 8]


def test_figures_of_prompts_stand_apart_from_the_rows():
    pieces = [ScoredPrompt((5, 1), 1, (TokenLogprobs(-0.5, (7,), (-0.25,), 2),)), ScoredPrompt((6, 2), 9, ())]
    frame = step_frame(3, [], pieces)
    assert [(each.request, each.attempt, each.first, len(each.logprobs)) for each in frame.prompt_logprobs] == [
        (5, 1, 1, 1),
        (6, 2, 9, 0),
    ]
    assert (frame.prompt_logprobs[0].logprobs[0].rank, list(frame.tokens)) == (2, [])


def test_a_searchs_answer_names_its_request():
    beam = Beam((4, 5), (), -0.75, FinishReason.STOP)
    answer = beam_answer(BeamsFound((5, 2), (beam,), 32))
    assert (answer.request, answer.attempt, answer.cached_tokens) == (5, 2, 32)
    assert beams_from_proto(answer.beams) == (beam,)
