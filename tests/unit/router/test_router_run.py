"""A request gets what it asked for, whatever its batch mates asked for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from router_toy_model import toy_card

from router.events import Finish, Release
from router.lifecycle import LifecycleLimits, RequestLifecycle
from router.run import Run
from wire.sampling import FinishReason, SamplingParams, TokenLogprobs

FIGURES = TokenLogprobs(-0.5, (4,), (-0.5,))


def run(logprobs: int | None) -> Run:
    nobody: Any = None
    return Run(
        nobody,
        1,
        toy_card(),
        lifecycle=RequestLifecycle((1, 2), LifecycleLimits(), deadline_s=1.0),
        sampling=SamplingParams(max_tokens=8, logprobs=logprobs),
        wake=asyncio.Event(),
        now_s=0.0,
    )


@pytest.mark.parametrize("sent", [(), (FIGURES,), (TokenLogprobs(0.0),) * 3])
def test_figures_in_a_shared_frame_reach_only_who_asked(sent: tuple[TokenLogprobs, ...]) -> None:
    one = run(logprobs=None)
    one.deliver(Release((4, 5, 6), sent))
    one.deliver(Finish(FinishReason.LENGTH))
    batch = one.poll()
    assert batch is not None
    assert batch.tokens == (4, 5, 6)
    assert batch.logprobs == ()


def test_who_asked_gets_one_figure_for_each_token() -> None:
    one = run(logprobs=0)
    one.deliver(Release((4,), (FIGURES,)))
    one.deliver(Release((5, 6), (FIGURES, FIGURES)))
    batch = one.poll()
    assert batch is not None
    assert batch.logprobs == (FIGURES,) * 3
