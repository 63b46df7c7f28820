"""`scripts/gpu_check [--parts DIR] [--minutes 8] [--out DIR] [--dry-run]`."""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.gpu import proofs
from benchmarks.gpu.cases import cases
from benchmarks.gpu.cases.case import Case
from benchmarks.gpu.ceilings import measure
from benchmarks.gpu.report import Measured, Report, commit, table
from benchmarks.gpu.timing import seconds_of
from benchmarks.gpu.units import ROOT, compile_all, cutlass_headers, units
from engine.ops.cuda.library import Library
from wire.errors import SpliceError

_DRY_CAPABILITY = "90"
_MEMORY_TOOLS = ("memcheck", "racecheck")
_ONE_MEMORY_CHECK_S = 100.0
_LEFT_FOR_FIGURES_S = 150.0
"""Tests and memory checks end so long before the whole does."""


def main() -> int:
    """0 where everything that was tried succeeded, 1 otherwise."""
    arguments = _arguments()
    ends = time.monotonic() + 60 * arguments.minutes
    report = Report(_machine(), commit(), datetime.date.today().isoformat())
    has_gpu = torch.cuda.is_available()
    if not has_gpu and not arguments.dry_run:
        print("torch sees no GPU here; --dry-run compiles everything and lists what would run", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        scratch = Path(folder)
        _build(report, arguments, scratch)
        if not has_gpu:
            print(proofs.listed())
            print("\n".join(case.name for case in cases()))
            print(table(report))
            return int(report.failed)
        _prove(report, arguments, scratch, ends)
    _measure(report, ends)
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
    report.units = compile_all(chosen, capability, include, scratch, arguments.jobs)
    report.write(arguments.out) if not arguments.dry_run else None


def _prove(report: Report, arguments: argparse.Namespace, scratch: Path, ends: float) -> None:
    for file in proofs.files():
        left = ends - time.monotonic() - _LEFT_FOR_FIGURES_S
        if left < 15:
            report.notes.append(f"{file.stem}: not run, out of time")
            continue
        report.proofs.append(proofs.run_tests(file.stem, [file], scratch, left))
        print(f"{report.proofs[-1]}"[:2000], flush=True)
        report.write(arguments.out)
    for tool in _MEMORY_TOOLS:
        left = min(_ONE_MEMORY_CHECK_S, ends - time.monotonic() - _LEFT_FOR_FIGURES_S)
        if left < 30:
            report.notes.append(f"{tool}: not run, out of time")
            continue
        report.memory.append(proofs.check_memory(tool, scratch, left))
    report.write(arguments.out)


def _measure(report: Report, ends: float) -> None:
    try:
        library = Library()
    except SpliceError as error:
        report.notes.append(f"nothing measured: {error}")
        return
    report.ceilings = measure()
    for case in cases():
        if not library.has(case.function):
            report.notes.append(f"{case.name}: {case.function} was not built")
        elif time.monotonic() > ends:
            report.notes.append(f"{case.name}: not measured, out of time")
        else:
            report.measured.append(_measured(case, library))
        torch.cuda.empty_cache()


def _measured(case: Case, library: Library) -> Measured:
    try:
        seconds = seconds_of(case.make(library))
        rival = None if case.rival is None else seconds_of(case.rival())
    except (RuntimeError, SpliceError) as error:
        return Measured(case.name, None, case.moved_bytes, case.operations, error=str(error)[:300])
    return Measured(case.name, seconds, case.moved_bytes, case.operations, case.rival_name, rival)


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
