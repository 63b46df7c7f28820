"""What a check of a GPU says: shares of measured ceilings, nothing left out in silence, failure where there was one."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from benchmarks.gpu.budget import FOR_FIGURES_S, Budget
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.measuring import Outcome
from benchmarks.gpu.proofs import Proof
from benchmarks.gpu.report import Measured, Report, exactness_costs, shares, table
from benchmarks.gpu.tasks import Task, tasks
from benchmarks.gpu.units import Compiled

CEILINGS = Ceilings(4e12, 800e12, 1500e12)
NORM = Measured("norm, 8 rows", 2e-6, 4_000_000, 800_000_000, "torch", 5e-6, function="rms_norm")


def _task(kind, name="a task"):
    return Task(name, kind, 1.0, lambda library: None)


def _report(**fields) -> Report:
    machine = {"gpu": "NVIDIA H200"}
    return Report(machine, "0123456789ab", "2026-11-21", **fields)


def test_shares_are_of_the_measured_ceilings_of_the_same_precision():
    assert shares(NORM, CEILINGS) == pytest.approx((0.5, 0.5))
    assert shares(replace(NORM, precision="fp8"), CEILINGS)[1] == pytest.approx(0.8e15 / 1.5e15 / 2)
    assert CEILINGS.flop_per_s("fp8") == 1500e12
    assert replace(CEILINGS, fp8_flop_per_s=0.0).flop_per_s("fp8") == 800e12
    assert shares(replace(NORM, seconds=None), CEILINGS) == (0.0, 0.0)


def test_the_table_holds_every_part_of_the_report():
    step = {"name": "step of 8", "seconds": 5e-3, "host_seconds": 1e-4, "floor_bytes": 16_000_000_000}
    entry = {
        "shape": {"op": "linear", "n": 64, "k": 32},
        "mode": "fast",
        "chosen": [[1, "a"], [64, "b"]],
        "trials": [{"tactic": "c", "bucket": 1, "seconds": None, "skipped": "raised"}],
    }
    report = _report(
        units=[Compiled("norm", 4.0, 40, 0), Compiled("gate", 1.0, 0, 0, "error: no such thing")],
        proofs=[Proof("test_x", 3.0, 5, 1, ("test_bad: expected 1",))],
        memory=[Proof("memcheck", 9.0, 5, 0, ())],
        ceilings=CEILINGS,
        measured=[NORM, replace(NORM, name="broken", seconds=None, error="CUDA error")],
        steps=[step],
        tactics=[entry],
        peers=[{"name": "transformers", "output_tokens_per_s": 812.4, "seconds": 2.0, "error": None}],
        errors=["decode steps: its process ended with -11"],
        notes=["racecheck: not run, out of time"],
    )
    said = table(report)
    for part in (
        "NVIDIA H200, 2026-11-21, commit 0123456789ab",
        "unit norm: 4 s, 40 registers, 0 bytes spilled",
        "unit gate: not built: error: no such thing",
        "test_bad: expected 1",
        "memory memcheck: 5 passed",
        "copy 4.00 TB/s, bf16 product 800 TFLOP/s, fp8 product 1500 TFLOP/s",
        "2.50 × torch",
        "CUDA error",
        "1.25 × its floor, host 100 µs",
        "tactic fast linear 64x32: 1: a, 64: b; left out: c",
        "transformers: 812 output tokens/s",
        "failed: decode steps: its process ended with -11",
        "note: racecheck: not run, out of time",
    ):
        assert part in said


def test_the_cost_of_exactness_is_that_of_one_tactic_for_all_rows():
    def trial(tactic, bucket, seconds):
        return {"tactic": tactic, "bucket": bucket, "seconds": seconds, "skipped": ""}

    shape = {"op": "linear", "n": 64, "k": 32}
    trials = [trial("a", 1, 2.0), trial("b", 1, 1.0), trial("a", 64, 3.0), trial("b", 64, 4.0), trial("b", 128, 1.0)]
    fast = {"shape": shape, "mode": "fast", "chosen": [[1, "b"], [64, "a"], [128, "b"]], "trials": trials}
    exact = {"shape": shape, "mode": "deterministic", "chosen": [[0, "a"]], "trials": []}
    assert exactness_costs([fast, exact]) == {"linear 64x32": {1: 2.0, 64: 1.0}}
    assert "cost of exactness, linear 64x32: 1 rows 2.00, 64 rows 1.00" in table(_report(tactics=[fast, exact]))
    assert exactness_costs([fast]) == exactness_costs([exact]) == exactness_costs([]) == {}


def test_only_what_was_tried_and_did_not_succeed_fails_a_check():
    assert not _report().failed
    assert not _report(
        units=[Compiled("gemm_sm90", 0, 0, 0, "is for sm_90a, this is sm_80")], notes=["x: out of time"]
    ).failed
    assert _report(units=[Compiled("norm", 1, 0, 0, "error")]).failed
    assert _report(proofs=[Proof("a", 1, 1, 0, ("b",))]).failed
    assert _report(memory=[Proof("a", 1, 1, 0, ("b",))]).failed
    assert _report(measured=[replace(NORM, error="no")]).failed
    assert _report(errors=["x"]).failed


def test_outcomes_go_where_their_task_says():
    report = _report()
    report.take(_task("ceilings"), Outcome(0, asdict(CEILINGS)))
    report.take(_task("measured"), Outcome(1, asdict(NORM)))
    report.take(_task("steps"), Outcome(2, [{"name": "one"}, {"name": "two"}]))
    report.take(_task("steps", "late"), Outcome(3, error="not measured: out of time"))
    report.take(_task("peers", "torn"), Outcome(4, error="its process ended with -6"))
    assert (report.ceilings, report.measured, len(report.steps)) == (CEILINGS, [NORM], 2)
    assert report.notes == ["late: not measured: out of time"]
    assert report.errors == ["torn: its process ended with -6"]


def test_the_file_is_read_back_as_it_was(tmp_path):
    report = _report(ceilings=CEILINGS, measured=[NORM])
    path = report.write(tmp_path / "new")
    assert path.name == "nvidia-h200-2026-11-21.json"
    again = json.loads(path.read_text())
    assert Measured(**again["measured"][0]) == NORM
    assert Ceilings(**again["ceilings"]) == CEILINGS


def test_tasks_have_names_of_their_own_and_the_machine_comes_first():
    names = [task.name for task in tasks()]
    assert len(set(names)) == len(names)
    assert tasks()[0].kind == "ceilings"
    assert {task.kind for task in tasks()} == {"ceilings", "measured", "steps", "tactics", "peers"}
    assert all(hasattr(_report(), task.kind) for task in tasks())


def test_time_for_figures_is_kept_from_tests_and_checkers():
    now = [0.0]
    budget = Budget(480.0, lambda: now[0])
    assert budget.for_tests(5) == (480 - FOR_FIGURES_S) / 2
    assert budget.for_tests(1) == 480 - FOR_FIGURES_S
    assert budget.for_memory_check() == 100.0
    now[0] = 480 - FOR_FIGURES_S - 35
    assert budget.for_memory_check() == 35
    assert budget.for_tests(2) == 17.5
    now[0] += 10
    assert (budget.for_tests(2), budget.for_memory_check()) == (None, None)
    assert budget.for_tests(1) == 25
    assert budget.for_task(40) == 40
    now[0] = 470.0
    assert budget.for_task(40) == 10
    now[0] = 500.0
    assert (budget.left_s, budget.for_task(40)) == (0.0, None)


def test_a_file_that_hangs_leaves_the_others_their_time():
    now = [0.0]
    budget = Budget(480.0, lambda: now[0])
    begun = 0
    for left in range(12, 0, -1):
        allowed = budget.for_tests(left)
        if allowed is None:
            break
        begun += 1
        now[0] += allowed
    assert begun >= 4
    assert budget.left_s >= FOR_FIGURES_S
