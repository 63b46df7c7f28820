"""What a check of a GPU says: shares of measured ceilings, nothing left out in silence, failure where there was one."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from benchmarks.gpu.budget import FOR_FIGURES_S, Budget
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.check import first_of, rest_of
from benchmarks.gpu.measuring import Outcome
from benchmarks.gpu.natives import Natives
from benchmarks.gpu.proofs import Proof
from benchmarks.gpu.report import Measured, Report, read, resumed
from benchmarks.gpu.shares import shares
from benchmarks.gpu.table import exactness_costs, table
from benchmarks.gpu.tasks import Task, tasks
from benchmarks.gpu.units import Compiled

CEILINGS = Ceilings(4e12, 800e12, 1500e12)
NORM = Measured("norm, 8 rows", 2e-6, 4_000_000, 800_000_000, "torch", 5e-6, function="rms_norm")


MACHINE = {"gpu": "NVIDIA H200", "sources": "0123", "torch": "2.11.0", "cuda": "13.0", "python": "3.12.3"}
LATE = "not measured: out of time"


def _task(kind, name="a task", goals=()):
    return Task(name, kind, 1.0, lambda library, shared: None, goals)


def _report(**fields) -> Report:
    return Report(dict(MACHINE), "0123456789ab", "2026-11-21", **fields)


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
        natives=Natives(9.0, ("engine._sampling",)),
        serving=[
            {"name": "engine", "output_tokens_per_s": 9876.5, "rows_of_a_step": 99.0, "seconds_of_a_step": 0.01},
        ],
        handoffs=[
            {
                "name": "hand-off", "kv_bytes": 10**9, "pull_seconds": 1e-3, "memcpy_seconds": 8e-4,
                "exposed_seconds": 2e-3, "prefill_seconds": 0.2,
            }
        ],
        missed={"decode steps": "its process ended with -11", "tactics": LATE},
        notes=["racecheck: not run, out of time"],
    )  # fmt: skip
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
        "native modules: engine._sampling",
        "engine: 9876 output tokens/s, 99 rows and 10.0 ms a step",
        "hand-off: 2000 GB/s, device memcpy 2500 GB/s; exposed 2.00 ms after a prefill of 200 ms",
        "failed: decode steps: its process ended with -11",
        "no time for 1 measurements: tactics",
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
    assert not _report(missed={"a": LATE}).failed
    assert _report(missed={"a": "CUDA error"}).failed
    assert _report(errors=["x"]).failed


def test_outcomes_go_where_their_task_says():
    report = _report()
    report.take(_task("ceilings"), Outcome(0, asdict(CEILINGS)))
    report.take(_task("measured", "norm"), Outcome(1, asdict(NORM)))
    report.take(_task("steps"), Outcome(2, [{"name": "one"}, {"name": "two"}]))
    report.take(_task("steps", "late"), Outcome(3, error=LATE))
    report.take(_task("peers", "torn"), Outcome(4, error="its process ended with -6"))
    assert (report.ceilings, report.measured, len(report.steps)) == (CEILINGS, [NORM], 2)
    assert report.missed == {"late": LATE, "torn": "its process ended with -6"}
    assert report.done == ["a task", "norm", "a task"]


def test_a_later_try_takes_the_place_of_the_one_that_failed():
    report = _report()
    report.take(_task("measured", NORM.name), Outcome(0, asdict(replace(NORM, seconds=None, error="CUDA error"))))
    assert (report.missed, report.done, report.failed) == ({NORM.name: "CUDA error"}, [], True)
    report.take(_task("measured", NORM.name), Outcome(0, asdict(NORM)))
    assert (report.missed, report.done, report.measured, report.failed) == ({}, [NORM.name], [NORM], False)
    for failures in (("it broke",), ()):
        report.prove(Proof("test_x", 1.0, 1, 0, failures), under_a_checker=False)
    assert report.proofs == [Proof("test_x", 1.0, 1, 0, ())]


def test_what_targets_are_about_comes_first_and_what_failed_last():
    names = {"a": (), "b": ("goal",), "c": ("goal",), "d": (), "e": ("goal",)}
    wanted = [_task("measured", name, goals) for name, goals in names.items()]
    report = _report(done=["e"], missed={"b": "CUDA error", "d": LATE})
    first = first_of(report, wanted)
    assert [task.name for task in first] == ["c", "b"]
    report.done.append("c")
    report.missed["a"] = "its process ended with -6"
    assert [task.name for task in rest_of(report, wanted, first)] == ["d", "a"]


def test_what_takes_longest_comes_after_a_figure_of_every_other_target():
    kinds = [task.kind for task in first_of(_report(), tasks())]
    order = list(dict.fromkeys(kinds))
    assert order == ["ceilings", "measured", "steps", "handoffs", "peers", "serving"]
    assert kinds == sorted(kinds, key=order.index)


def test_the_file_is_read_back_as_it_was(tmp_path):
    report = _report(
        ceilings=CEILINGS, measured=[NORM], units=[Compiled("norm", 4.0, 40, 0)], natives=Natives(1.0, ("a",)),
        proofs=[Proof("test_x", 3.0, 5, 1, ("bad",), ("no GPU",))], done=["a"], missed={"b": LATE},
    )  # fmt: skip
    path = report.write(tmp_path / "new")
    assert [file.name for file in path.parent.iterdir()] == ["nvidia-h200-2026-11-21.json"]
    assert read(path) == report
    for text in ("{}", "half a li", json.dumps({"machine": {}})):
        path.write_text(text)
        with pytest.raises(ValueError, match="is no result of a check"):
            read(path)


def test_a_run_goes_on_from_another_of_the_same_kernels_on_the_same_kind_of_gpu_alone(tmp_path):
    path = _report(done=["a"], errors=["x"]).write(tmp_path)
    again = resumed(path, MACHINE, "0123456789ab")
    assert (again.done, again.errors, again.notes) == (["a"], [], [])
    later = resumed(path, MACHINE, "ba9876543210")
    assert (later.commit, later.notes) == ("ba9876543210", ["begun at commit 0123456789ab, with the same kernels"])
    for name in ("gpu", "sources", "torch"):
        with pytest.raises(ValueError, match=f"{name} was .* and is other"):
            resumed(path, MACHINE | {name: "other"}, "0123456789ab")


def test_tasks_have_names_of_their_own_and_the_machine_comes_first():
    names = [task.name for task in tasks()]
    assert len(set(names)) == len(names)
    assert tasks()[0].kind == "ceilings"
    assert {task.kind for task in tasks()} == {
        "ceilings", "measured", "steps", "handoffs", "serving", "peers", "tactics",
    }  # fmt: skip
    assert all(hasattr(_report(), task.kind) for task in tasks())


def test_time_for_figures_is_kept_from_builds_tests_and_checkers():
    now = [0.0]
    budget = Budget(480.0, lambda: now[0])
    assert budget.for_build() == 480 - FOR_FIGURES_S
    assert budget.for_test() == 120
    now[0] = 480 - FOR_FIGURES_S - 20
    assert (budget.for_build(), budget.for_test()) == (60, 20)
    now[0] += 10
    assert budget.for_test() is None
    assert budget.for_check() == 75
    assert budget.for_task(40) == 40
    now[0] = 450.0
    assert (budget.for_check(), budget.for_task(40), budget.for_task(59), budget.for_task(60)) == (20, 30, 30, None)
    now[0] = 500.0
    assert (budget.left_s, budget.for_check(), budget.for_task(40)) == (0.0, None, None)
