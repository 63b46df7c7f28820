"""`scripts/gpu_check [--parts DIR] [--minutes 8] [--out DIR] [--resume FILE] [--commit ID] [--dry-run]`.

Reads the command line and unpacks the wheels that travel with a tree. Only then is the rest imported, which needs them:
this file stands on the standard library alone.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu.parts import unpack_wheels

_ROOT = Path(__file__).resolve().parents[2]
_MINUTES, _DRY_MINUTES = 8.0, 60.0
"""Without a GPU nobody waits for the machine, and two cores compile for some ten minutes."""


def main() -> int:
    """0 where everything that was tried succeeded, 1 otherwise."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        unpacked = unpack_wheels(arguments.parts, Path(folder))
        try:
            from benchmarks.gpu import check  # noqa: PLC0415 (torch and the engine, which needs what was unpacked)
        except ModuleNotFoundError as error:
            print(f"{error}: install it for {sys.executable}, or put its wheel into {arguments.parts}", file=sys.stderr)
            return 1
        return check.run(arguments, Path(folder), unpacked)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu_check", description="Builds, tests and measures the CUDA kernels here.")
    parts, out = _ROOT / "build" / "parts", _ROOT / "benchmarks" / "results" / "gpu"
    parser.add_argument("--parts", type=Path, default=parts, help="headers of CUTLASS, or its wheel")
    parser.add_argument("--out", type=Path, default=out, help="where results go")
    parser.add_argument("--minutes", type=float, help=f"time for all of it; {_MINUTES:.0f}, without a GPU longer")
    parser.add_argument("--resume", type=Path, help="the result of a run before: what it has is not done again")
    parser.add_argument("--commit", help="what this tree was checked out from, where it is no repository")
    parser.add_argument("--rebuild", action="store_true", help="compile kernels that are there already")
    parser.add_argument("--jobs", type=int, default=min(16, os.cpu_count() or 1), help="sources compiled at once")
    parser.add_argument("--units", nargs="*", default=[], help="compile only these")
    parser.add_argument("--dry-run", action="store_true", help="without a GPU: compile for sm_90, list tests and cases")
    arguments = parser.parse_args()
    if arguments.minutes is None:
        arguments.minutes = _DRY_MINUTES if arguments.dry_run else _MINUTES
    return arguments


if __name__ == "__main__":
    sys.exit(main())
