"""Push or pull: both are tried, then the one that costs less is taken, and nothing is settled for ever."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from kvtransfer.push_choice import AGAIN, MOST_IN_VAIN, TRIALS, KvPush, MeasuredHandoff, PushChoice


@dataclass
class Peer:
    """A source whose hand-offs take scripted times."""

    push_exposed_s: float = 0.5e-3
    pull_exposed_s: float = 2e-3
    push_slows_token_s: float = 0.0
    can_push: bool = True
    mode: KvPush = "auto"
    scatter: float = 0.0
    choice: PushChoice = field(init=False)

    def __post_init__(self) -> None:
        self.choice = PushChoice(self.mode)
        self._random = random.Random(5)

    def handoff(self, tokens: int = 500) -> bool:
        wanted = self.choice.wants_push(tokens)
        pushed = wanted and self.can_push
        exposed_s = self.push_exposed_s if pushed else self.pull_exposed_s
        exposed_s *= 1 + self.scatter * self._random.random()
        excess_s = self.push_slows_token_s * tokens if pushed else 0.0
        self.choice.ended(wanted, pushed, MeasuredHandoff(tokens, exposed_s, excess_s))
        return wanted

    def handoffs(self, count: int, tokens: int = 500) -> float:
        """The share of them that was to be pushed."""
        return sum(self.handoff(tokens) for _ in range(count)) / count


def test_both_ways_are_tried_before_either_is_chosen() -> None:
    assert Peer().handoffs(2 * TRIALS) == 0.5


@pytest.mark.parametrize("scatter", [0.0, 0.3])
def test_the_way_that_exposes_less_is_taken(scatter: float) -> None:
    peer = Peer(scatter=scatter)
    peer.handoffs(2 * TRIALS)
    assert peer.handoffs(AGAIN) > 0.95
    peer = Peer(push_exposed_s=2e-3, pull_exposed_s=0.5e-3, scatter=scatter)
    peer.handoffs(2 * TRIALS)
    assert peer.handoffs(AGAIN) < 0.05


def test_what_a_push_takes_from_prefill_counts_by_the_prompts_length() -> None:
    """It saves 1.5 ms a hand-off and costs 10 µs a token."""
    peer = Peer(push_slows_token_s=10e-6)
    peer.handoffs(2 * TRIALS, tokens=50)
    assert peer.handoffs(20, tokens=50) == 1.0
    assert peer.handoffs(20, tokens=500) < 0.1
    assert peer.handoffs(20, tokens=50) > 0.9


def test_a_peer_that_becomes_slow_is_found_out_and_one_that_recovers_too() -> None:
    peer = Peer()
    peer.handoffs(AGAIN)
    peer.push_exposed_s = 9e-3
    peer.handoffs(AGAIN)
    assert peer.handoffs(AGAIN) < 0.05
    peer.push_exposed_s = 0.1e-3
    peer.handoffs(6 * AGAIN)
    assert peer.handoffs(AGAIN) > 0.95


def test_figures_that_scatter_about_the_same_do_not_make_it_change_its_mind() -> None:
    peer = Peer(push_exposed_s=1e-3, pull_exposed_s=1.02e-3)
    peer.handoffs(2 * TRIALS)
    assert peer.handoffs(AGAIN - 2 * TRIALS - 1) in (0.0, 1.0)


def test_a_source_that_never_pushes_is_soon_pulled_from() -> None:
    peer = Peer(can_push=False)
    asked = sum(peer.handoff() for _ in range(200))
    assert MOST_IN_VAIN <= asked <= MOST_IN_VAIN + 200 // AGAIN + 1
    peer.can_push = True
    peer.handoffs(2 * AGAIN)
    assert peer.handoffs(AGAIN) > 0.9


def test_hand_offs_that_run_at_once_are_tried_half_and_half() -> None:
    choice = PushChoice("auto")
    asked = [choice.wants_push(100) for _ in range(20)]
    assert sum(asked) == 10


def test_who_says_on_or_off_is_not_asked_for_figures() -> None:
    assert Peer(mode="on", push_exposed_s=1.0).handoffs(100) == 1.0
    assert Peer(mode="off", pull_exposed_s=1.0).handoffs(100) == 0.0
