"""`scripts/gpu_check [--parts DIR] [--minutes 8] [--out DIR] [--resume FILE] [--commit ID] [--dry-run]`."""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from benchmarks.gpu import natives, proofs
from benchmarks.gpu.budget import Budget
from benchmarks.gpu.machine import commit, machine
from benchmarks.gpu.measuring import outcomes
from benchmarks.gpu.parts import unpack_wheels
from benchmarks.gpu.proofs import MEMORY_TOOLS, Proof
from benchmarks.gpu.report import NOT_BEGUN, Report, resumed
from benchmarks.gpu.table import table
from benchmarks.gpu.targets import verdicts
from benchmarks.gpu.tasks import Kind, Task, tasks
from benchmarks.gpu.units import ROOT, already_built, chosen_units, compile_all, cutlass_headers
from engine.ops.cuda.library import Library
from wire.errors import SpliceError

_DRY_CAPABILITY = "90"
_TESTS_AT_ONCE = 8
_ORDER: tuple[Kind, ...] = ("ceilings", "measured", "steps", "handoffs", "peers", "serving", "tactics")
"""Kinds by what they take: a figure of every target is worth more than all figures of one."""


def main() -> int:
    """0 where everything that was tried succeeded, 1 otherwise."""
    arguments = _arguments()
    budget = Budget(time.monotonic() + 60 * arguments.minutes)
    has_gpu = torch.cuda.is_available()
    if not has_gpu and not arguments.dry_run:
        print("torch sees no GPU here; --dry-run compiles everything and lists what would run", file=sys.stderr)
        return 1
    here, of = machine(), commit(arguments.commit, arguments.parts)
    report = Report(here, of, datetime.datetime.now(tz=datetime.UTC).date().isoformat())
    if arguments.resume is not None:
        try:
            report = resumed(arguments.resume, here, of)
        except (OSError, ValueError) as error:
            print(error, file=sys.stderr)
            return 1
    wanted = tasks()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        scratch = Path(folder)
        _unpack(report, arguments, scratch)
        _build(report, arguments, scratch, budget)
        if not has_gpu:
            print(proofs.listed())
            print("\n".join(f"{task.kind}: {task.name}" for task in wanted))
            print(table(report))
            return int(report.failed)
        report.write(arguments.out)
        _prove(report, arguments.out, scratch, budget)
        _measure(report, arguments.out, scratch, budget, first := first_of(report, wanted))
        _check_memory(report, arguments.out, scratch, budget)
        _measure(report, arguments.out, scratch, budget, rest_of(report, wanted, first))
    path = report.write(arguments.out)
    print(table(report))
    print("\n".join(verdict.line for verdict in verdicts(report, wanted)))
    print(path)
    return int(report.failed)


def _build(report: Report, arguments: argparse.Namespace, scratch: Path, budget: Budget) -> None:
    """Kernels, and beside them the engine's own modules; neither where they are there."""
    missing = natives.missing()
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(natives.build, missing, scratch, arguments.jobs, budget.for_build()) if missing else None
        _build_kernels(report, arguments, scratch, budget)
        if beside is not None:
            report.natives = beside.result()


def _build_kernels(report: Report, arguments: argparse.Namespace, scratch: Path, budget: Budget) -> None:
    chosen, include = chosen_units(arguments.units), None
    try:
        include = cutlass_headers(arguments.parts, scratch)
    except FileNotFoundError as error:
        report.notes.append(str(error))
    capability = _DRY_CAPABILITY
    if torch.cuda.is_available():
        capability = "".join(map(str, torch.cuda.get_device_capability()))
    there = already_built(chosen, capability)
    if there is not None and not arguments.rebuild:
        report.notes.append(f"kernels were there, built for {' '.join(there.targets)} with CUDA {there.runtime}")
        return
    report.units = compile_all(chosen, capability, include, scratch, arguments.jobs, budget.for_build())


def _prove(report: Report, out: Path, scratch: Path, budget: Budget) -> None:
    proven = {proof.name for proof in report.proofs if not proof.failures}
    names = [file.stem for file in proofs.files() if file.stem not in proven]
    for name, proof in proofs.run_tests(names, scratch, budget.for_test, _TESTS_AT_ONCE):
        _take_proof(report, out, name, proof, under_a_checker=False)


def _check_memory(report: Report, out: Path, scratch: Path, budget: Budget) -> None:
    clean = {proof.name for proof in report.memory if not proof.failures}
    names = [f"{tool} {file.stem}" for tool in MEMORY_TOOLS for file in proofs.checked_files()]
    try:
        wanted = [name for name in names if name not in clean]
        for name, proof in proofs.check_memory(wanted, scratch, budget.for_check, _TESTS_AT_ONCE):
            _take_proof(report, out, name, proof, under_a_checker=True)
    except FileNotFoundError as error:
        report.notes.append(str(error))


def _take_proof(report: Report, out: Path, name: str, proof: Proof | None, *, under_a_checker: bool) -> None:
    late = f"{name}: not run, out of time"
    report.notes = [note for note in report.notes if note != late]
    if proof is None:
        report.notes.append(late)
        return
    report.prove(proof, under_a_checker=under_a_checker)
    print(f"{name}: {proof.passed} passed, {proof.skipped} skipped, {len(proof.failures)} failed", flush=True)
    report.write(out)


def first_of(report: Report, wanted: Sequence[Task]) -> list[Task]:
    """Of those that gave nothing yet, what targets are about; before memory is checked, which comes before the rest."""
    left = [task for task in wanted if task.name not in report.done]
    return _in_order(report, [task for task in left if task.goals or task.kind == "ceilings"])


def rest_of(report: Report, wanted: Sequence[Task], first: Sequence[Task]) -> list[Task]:
    """What is left then. What failed in this run is not tried again in it."""
    begun = {task.name for task in first}
    return _in_order(report, [task for task in wanted if task.name not in report.done and task.name not in begun])


def _in_order(report: Report, left: Sequence[Task]) -> list[Task]:
    """What failed in an earlier run comes last."""
    failed = {name for name, why in report.missed.items() if not why.startswith(NOT_BEGUN)}
    return sorted(left, key=lambda task: (task.name in failed, _ORDER.index(task.kind)))


def _measure(report: Report, out: Path, scratch: Path, budget: Budget, left: Sequence[Task]) -> None:
    try:
        Library()
    except SpliceError as error:
        report.errors = [*dict.fromkeys((*report.errors, f"nothing was measured: {error}"))]
        return
    plan = scratch / "plan.json"
    plan.write_text(json.dumps([task.name for task in left]))
    found = outcomes(
        lambda first: (sys.executable, "-m", "benchmarks.gpu.measuring_process", str(plan), str(first)),
        lambda index: budget.for_task(left[index].limit_s),
        len(left),
        ROOT,
    )
    for outcome in found:
        report.take(left[outcome.index], outcome)
        report.write(out)


def _unpack(report: Report, arguments: argparse.Namespace, scratch: Path) -> None:
    names = unpack_wheels(arguments.parts, scratch)
    if names:
        report.notes.append(f"from wheels: {', '.join(names)}")
    for package in ("msgspec", "structlog"):
        if importlib.util.find_spec(package) is None:
            report.notes.append(f"no {package}: what needs it is left out; put its wheel into {arguments.parts}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu_check", description="Builds, tests and measures the CUDA kernels here.")
    parser.add_argument("--parts", type=Path, default=ROOT / "build" / "parts", help="headers of CUTLASS, or its wheel")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu", help="where results go")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all of it")
    parser.add_argument("--resume", type=Path, help="the result of a run before: what it has is not done again")
    parser.add_argument("--commit", help="what this tree was checked out from, where it is no repository")
    parser.add_argument("--rebuild", action="store_true", help="compile kernels that are there already")
    parser.add_argument("--jobs", type=int, default=min(16, os.cpu_count() or 1), help="sources compiled at once")
    parser.add_argument("--units", nargs="*", default=[], help="compile only these")
    parser.add_argument("--dry-run", action="store_true", help="without a GPU: compile for sm_90, list tests and cases")
    arguments = parser.parse_args()
    try:
        chosen_units(arguments.units)
    except ValueError as error:
        parser.error(str(error))
    return arguments


if __name__ == "__main__":
    sys.exit(main())
