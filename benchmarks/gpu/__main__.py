"""`scripts/gpu_check [--parts DIR] [--minutes 8] [--out DIR] [--dry-run]`."""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.gpu import proofs
from benchmarks.gpu.budget import Budget
from benchmarks.gpu.measuring import outcomes
from benchmarks.gpu.parts import unpack_wheels
from benchmarks.gpu.report import Report, commit, table
from benchmarks.gpu.tasks import tasks
from benchmarks.gpu.units import ROOT, compile_all, cutlass_headers, units
from engine.ops.cuda.library import Library
from wire.errors import SpliceError

_DRY_CAPABILITY = "90"
_MEMORY_TOOLS = ("memcheck", "racecheck")


def main() -> int:
    """0 where everything that was tried succeeded, 1 otherwise."""
    arguments = _arguments()
    budget = Budget(time.monotonic() + 60 * arguments.minutes)
    report = Report(_machine(), commit(), datetime.date.today().isoformat())
    has_gpu = torch.cuda.is_available()
    if not has_gpu and not arguments.dry_run:
        print("torch sees no GPU here; --dry-run compiles everything and lists what would run", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        scratch = Path(folder)
        _unpack(report, arguments, scratch)
        _build(report, arguments, scratch)
        if not has_gpu:
            print(proofs.listed())
            print("\n".join(f"{task.kind}: {task.name}" for task in tasks()))
            print(table(report))
            return int(report.failed)
        _prove(report, arguments, scratch, budget)
        _measure(report, arguments, budget)
    path = report.write(arguments.out)
    print(table(report))
    print(path)
    return int(report.failed)


def _build(report: Report, arguments: argparse.Namespace, scratch: Path) -> None:
    chosen = [unit for unit in units() if not arguments.units or unit.name in arguments.units]
    include = None
    try:
        include = cutlass_headers(arguments.parts, scratch)
    except FileNotFoundError as error:
        report.notes.append(str(error))
    capability = _DRY_CAPABILITY
    if torch.cuda.is_available():
        capability = "".join(map(str, torch.cuda.get_device_capability()))
    try:
        report.units = compile_all(chosen, capability, include, scratch, arguments.jobs)
    except (RuntimeError, FileNotFoundError) as error:
        report.errors.append(f"no kernels were built: {str(error)[-2000:]}")
    report.write(arguments.out) if not arguments.dry_run else None


def _prove(report: Report, arguments: argparse.Namespace, scratch: Path, budget: Budget) -> None:
    files = proofs.files()
    for place, file in enumerate(files):
        left = budget.for_tests(len(files) - place)
        if left is None:
            report.notes.append(f"{file.stem}: not run, out of time")
            continue
        report.proofs.append(proofs.run_tests(file.stem, [file], scratch, left))
        print(f"{report.proofs[-1]}"[:2000], flush=True)
        report.write(arguments.out)
    for tool in _MEMORY_TOOLS:
        left = budget.for_memory_check()
        if left is None:
            report.notes.append(f"{tool}: not run, out of time")
            continue
        report.memory.append(proofs.check_memory(tool, scratch, left))
    report.write(arguments.out)


def _measure(report: Report, arguments: argparse.Namespace, budget: Budget) -> None:
    try:
        Library()
    except SpliceError as error:
        report.errors.append(f"nothing was measured: {error}")
        return
    wanted = tasks()
    found = outcomes(
        lambda first: (sys.executable, "-m", "benchmarks.gpu.measuring_process", str(first)),
        lambda index: budget.for_task(wanted[index].limit_s),
        len(wanted),
        ROOT,
    )
    for outcome in found:
        report.take(wanted[outcome.index], outcome)
        report.write(arguments.out)


def _unpack(report: Report, arguments: argparse.Namespace, scratch: Path) -> None:
    names = unpack_wheels(arguments.parts, scratch)
    if names:
        report.notes.append(f"from wheels: {', '.join(names)}")
    if importlib.util.find_spec("msgspec") is None:
        report.notes.append(
            f"no msgspec: tests of the engine and whole steps fail; put its wheel into {arguments.parts}"
        )


def _machine() -> dict[str, str]:
    found = {"torch": torch.__version__, "cuda": str(torch.version.cuda), "python": sys.version.split()[0]}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "multiprocessors": str(properties.multi_processor_count),
            "memory_gib": f"{properties.total_memory / 2**30:.0f}",
            "l2_mib": f"{properties.L2_cache_size / 2**20:.0f}",
        }
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu_check", description="Builds, tests and measures the CUDA kernels here.")
    parser.add_argument("--parts", type=Path, default=ROOT / "build" / "parts", help="headers of CUTLASS, or its wheel")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu", help="where results go")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all of it")
    parser.add_argument("--jobs", type=int, default=min(10, os.cpu_count() or 1), help="units compiled at once")
    parser.add_argument("--units", nargs="*", default=[], help="compile only these")
    parser.add_argument("--dry-run", action="store_true", help="without a GPU: compile for sm_90, list tests and cases")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
