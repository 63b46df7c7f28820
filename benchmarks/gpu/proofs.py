"""Running `tests/gpu`, a process for each file: a kernel that ends its process or the GPU's context costs no other."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.units import ROOT

TESTS = ROOT / "tests" / "gpu"
_INI = TESTS / "alone.ini"
_NOT_UNDER_A_CHECKER = ("gemm", "tuning", "triton", "device", "build")


@dataclass(frozen=True, slots=True)
class Proof:
    """What became of one file's tests. `failures` are names and last words."""

    name: str
    seconds: float
    passed: int
    skipped: int
    failures: tuple[str, ...]


def files() -> list[Path]:
    return sorted(TESTS.glob("test_*.py"))


def run_tests(name: str, paths: Sequence[Path], scratch: Path, limit_s: float, wrapper: tuple[str, ...] = ()) -> Proof:
    """The tests of these files that run on a GPU, perhaps under another program."""
    report = scratch / f"{name}.xml"
    command = [*wrapper, *_pytest(), "-m", "gpu", f"--junitxml={report}", *map(str, paths)]
    begun = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=limit_s, check=False
        )
        words, code = done.stdout[-1500:], done.returncode
    except subprocess.TimeoutExpired as error:
        words, code = f"not done after {limit_s:.0f} s: {_text(error.stdout)[-1000:]}", 124
    seconds = time.monotonic() - begun
    if not report.exists():
        return Proof(name, seconds, 0, 0, (f"ended with {code}: {words}",))
    cases = list(ET.parse(report).getroot().iter("testcase"))  # noqa: S314 - of our own process
    failed = tuple(
        f"{case.get('name')}: {(trouble.get('message') or '')[:600]}"
        for case in cases
        for trouble in case
        if trouble.tag in ("failure", "error")
    )
    skipped = sum(1 for case in cases if case.find("skipped") is not None)
    if code not in (0, 1, 5) and not failed:
        failed = (f"ended with {code}: {words}",)
    return Proof(name, seconds, len(cases) - skipped - len(failed), skipped, failed)


def check_memory(tool: str, scratch: Path, limit_s: float) -> Proof:
    """Tests of kernels of our own, in one process under compute-sanitizer: what it finds is a failure. Left out are
    those of CUTLASS and Triton, and of whole models, which are slow there and launch nothing else."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    wrapper = (program, "--tool", tool, "--error-exitcode", "9")
    paths = [file for file in files() if not any(word in file.stem for word in _NOT_UNDER_A_CHECKER)]
    return run_tests(tool, paths, scratch, limit_s, wrapper)


def listed() -> str:
    """Names of all tests, without running any."""
    command = [*_pytest(), "--collect-only", str(TESTS)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    return done.stdout


def _pytest() -> list[str]:
    own = ["-c", str(_INI), "--rootdir", str(ROOT), "--confcutdir", str(TESTS), "-p", "no:cacheprovider"]
    return [sys.executable, "-m", "pytest", "-q", *own]


def _text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""
