"""Every target has a line that says by how much it is met or missed, or why nothing was measured for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.report import Measured, Report
from benchmarks.gpu.targets import ENGINE_TARGETS, Point, verdicts
from benchmarks.gpu.tasks import tasks

CEILINGS = Ceilings(4e12, 800e12, 1500e12)
WANTED = tasks()
BYTES = 4_000_000_000
"""A millisecond's."""


def _report(**fields) -> Report:
    return Report({"gpu": "NVIDIA H200", "l2_mib": "60"}, "0123456789ab", "2026-11-21", ceilings=CEILINGS, **fields)


def _verdict(report: Report, beginning: str, wanted=()):
    return next(each for each in verdicts(report, wanted) if each.what.startswith(beginning))


def _case(name: str, goal: str, seconds: float, **fields) -> Measured:
    return Measured(name, seconds, BYTES, 0, goal=goal, **fields)


def test_nothing_measured_is_said_of_every_target():
    found = verdicts(_report(), WANTED)
    assert len(found) == 18
    assert all(each.verdict.startswith("not measured: ") for each in found)
    late = _report(missed={task.name: "not measured: out of time" for task in WANTED})
    assert "out of time" in _verdict(late, "paged decode", WANTED).verdict
    without = Report({}, "", "", missed={})
    assert "no ceilings" in _verdict(without, "decode step").verdict


def test_every_goal_of_a_measurement_is_that_of_a_target():
    """One that no target asks for is misspelt; those of FP8 engines and of pushes have no measurement yet."""
    asked = {goal for task in WANTED for goal in task.goals}
    for goal in asked:
        report = _report(missed={task.name: f"because of {goal}." for task in WANTED if goal in task.goals})
        assert any(f"because of {goal}." in each.verdict for each in verdicts(report, WANTED)), goal


def test_the_worst_of_those_larger_than_the_cache_decides():
    cases = [_case("long", "decode attention", 1.05e-3), _case("wide", "decode attention", 1.25e-3)]
    cached = replace(_case("small", "decode attention", 1.0), moved_bytes=60 << 20)
    found = _verdict(_report(measured=[*cases, cached]), "paged decode")
    assert found.verdict == "missed by 6 %"
    assert found.measured == "0.8 (wide), best 0.952, 1 of 2 meet it"
    assert _verdict(_report(measured=cases[:1]), "paged decode").verdict == "met"


def test_latents_meet_their_target_by_memory_or_by_arithmetic():
    slow = _case("a", "latents", 2e-3)
    busy = replace(slow, operations=int(0.7 * 800e12 * 2e-3))
    assert _verdict(_report(measured=[slow]), "latent").verdict == "missed by 33 %"
    assert _verdict(_report(measured=[busy]), "latent").verdict == "met"
    kernels = [replace(each, group="a") for each in (slow, busy)]
    assert _verdict(_report(measured=kernels), "latent").verdict == "met"


def test_the_fastest_tile_counts_and_the_exact_one_says_what_exactness_costs():
    tiles = [
        _case("tile 1", "fp8 products", 1.1e-3, rival_seconds=1.0e-3, group="qkv"),
        _case("tile 2", "fp8 products", 0.8e-3, rival_seconds=0.9e-3, group="qkv", is_exact=False),
    ]
    found = _verdict(_report(measured=tiles), "FP8")
    assert found.verdict == "met"
    assert found.measured == "1.12 (qkv); exactness costs 38 % at most"


def _step(mode: str, seconds: float) -> dict:
    return {
        "name": mode, "seconds": seconds, "host_seconds": 0.0, "floor_bytes": BYTES, "sequences": 1, "context": 1024,
        "mode": mode, "precision": "bf16",
    }  # fmt: skip


def test_steps_are_held_to_their_floor_in_the_fast_mode():
    both = _report(steps=[_step("deterministic", 1.21e-3), _step("fast", 1.1e-3)])
    found = _verdict(both, "decode step, 8B bf16, batch 1")
    assert (found.verdict, found.measured) == ("met", "1.1 (1 sequences at 1024); exactness costs 10 % at most")
    alone = _verdict(_report(steps=[_step("deterministic", 1.38e-3)]), "decode step, 8B bf16, batch 1")
    assert alone.verdict == "missed by 17 %"
    assert "deterministic" in alone.measured


def _rate(rate: float, precision: str, mode: str = "fast", *, at_once: bool = False) -> dict:
    return {
        "prompt_tokens": 128, "new_tokens": 128, "precision": precision, "mode": mode, "at_once": at_once,
        "output_tokens_per_s": rate,
    }  # fmt: skip


def test_an_engine_in_bf16_is_named_beside_the_target_for_fp8_and_does_not_meet_it():
    found = _verdict(_report(serving=[_rate(30_000, "bf16")]), "engine, 8B FP8, 128/128")
    assert found.verdict == "not measured: nothing here measures it yet"
    assert found.measured == "in bf16, fast: 30000"
    assert _verdict(_report(serving=[_rate(30_000, "fp8")]), "engine, 8B FP8, 128/128").verdict == "met"
    assert _verdict(_report(serving=[_rate(30_000, "fp8")]), "engine, 8B FP8, 1000").verdict.startswith("not measured")
    assert set(ENGINE_TARGETS) == {(128, 128), (1000, 1000), (2048, 2048)}


def test_the_peer_is_compared_with_the_same_load():
    peer = {"name": "transformers", "output_tokens_per_s": 1000.0, "error": None}
    own = [_rate(30_000, "bf16"), _rate(4500, "bf16", at_once=True)]
    found = _verdict(_report(serving=own, peers=[peer]), "against transformers")
    assert (found.verdict, found.measured.split()[0]) == ("missed by 10 %", "4.5")
    broken = _report(serving=own, peers=[peer | {"error": "is not installed"}])
    assert _verdict(broken, "against transformers").verdict.startswith("not measured")


def test_a_pull_and_a_push_are_held_to_their_own_targets():
    pull = {
        "name": "pull", "pull_seconds": 1e-3, "memcpy_seconds": 0.9e-3, "exposed_seconds": 5e-3, "prefill_seconds": 0.2,
        "pushed": False,
    }  # fmt: skip
    report = _report(handoffs=[pull])
    assert _verdict(report, "KV hand-off").verdict == "met"
    assert _verdict(report, "the same, exposed").verdict == "missed by 20 %"
    assert _verdict(report, "the same, pushed").verdict.startswith("not measured")
    pushed = pull | {"pushed": True, "exposed_seconds": 1e-4}
    assert _verdict(_report(handoffs=[pull, pushed]), "the same, pushed").verdict == "met"


@pytest.mark.parametrize(("at_most", "part", "cost"), [(False, 0.5, 1.0), (True, 2.0, -0.5)])
def test_a_point_is_a_part_of_its_target(at_most, part, cost):
    point = Point("a", 1.0, 2.0, at_most, exact=0.5)
    assert point.part == part
    assert point.cost == cost
