"""A check from the first compiler to the last figure. Imports the engine, and with it what may have travelled as
wheels: `__main__` unpacks those first."""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from benchmarks.gpu import natives, proofs
from benchmarks.gpu.budget import Budget
from benchmarks.gpu.machine import commit, machine
from benchmarks.gpu.measuring import outcomes
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
TACTICS = "tactics"
"""The folder, beside a result, of what its fast mode chose among kernels."""
_ORDER: tuple[Kind, ...] = ("ceilings", "measured", "steps", "handoffs", "peers", "serving", "tactics")
"""Kinds by what they take: a figure of every target is worth more than all figures of one."""


def run(arguments: argparse.Namespace, scratch: Path, unpacked: Sequence[str]) -> int:
    """0 where everything that was tried succeeded, 1 otherwise. `unpacked` names packages that came from wheels."""
    budget = Budget(time.monotonic() + 60 * arguments.minutes)
    if not torch.cuda.is_available() and not arguments.dry_run:
        print(f"{_no_gpu()}; --dry-run compiles everything and lists what would run", file=sys.stderr)
        return 1
    here, of = machine(), commit(arguments.commit, arguments.parts)
    report = Report(here, of, datetime.datetime.now(tz=datetime.UTC).date().isoformat())
    try:
        chosen_units(arguments.units)
        if arguments.resume is not None:
            report = resumed(arguments.resume, here, of)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    wanted = tasks()
    _say_packages(report, arguments.parts, unpacked)
    _build(report, arguments, scratch, budget)
    if arguments.dry_run:
        print(proofs.listed())
        print("\n".join(f"{task.kind}: {task.name}" for task in wanted))
        print(table(report))
        return int(report.failed)
    report.write(arguments.out)
    _bring_tactics(arguments.resume, arguments.out)
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
    plan, shared = scratch / "plan.json", (out / TACTICS).resolve()
    plan.write_text(json.dumps([task.name for task in left]))
    found = outcomes(
        lambda first: (sys.executable, "-m", "benchmarks.gpu.measuring_process", str(plan), str(first), str(shared)),
        lambda index: budget.for_task(left[index].limit_s),
        len(left),
        ROOT,
    )
    for outcome in found:
        report.take(left[outcome.index], outcome)
        report.write(out)


def _bring_tactics(resume: Path | None, out: Path) -> None:
    """What was found out in the run that is gone on with: the fast mode tries every kernel for half a minute."""
    (out / TACTICS).mkdir(parents=True, exist_ok=True)
    found = [] if resume is None else (resume.parent / TACTICS).glob("tactics-*.json")
    for file in found:
        if not (out / TACTICS / file.name).exists():
            shutil.copy2(file, out / TACTICS)


def _say_packages(report: Report, parts: Path, unpacked: Sequence[str]) -> None:
    if unpacked:
        report.notes.append(f"from wheels: {', '.join(unpacked)}")
    for package in ("msgspec", "structlog"):
        if importlib.util.find_spec(package) is None:
            report.notes.append(f"no {package}: what needs it is left out; put its wheel into {parts}")


def _no_gpu() -> str:
    """With torch's own reason where it has one: a driver that is missing reads otherwise than one that is too old."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        return f"torch sees no GPU here ({error})"
    return "torch sees no GPU here"
