"""Running `tests/gpu`, a process for each file: a kernel that ends its process or the GPU's context costs no other.

Files run beside each other: most of a file's time is that of its imports.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.gpu.limited import run_limited
from benchmarks.gpu.units import ROOT

TESTS = ROOT / "tests" / "gpu"
MEMORY_TOOLS = ("memcheck", "racecheck")
_INI = TESTS / "alone.ini"
_NOT_UNDER_A_CHECKER = ("gemm", "tuning", "build", "torch_ops", "handoff")
_ON_A_GPU = re.compile(r"\bplatform\b|mark\.gpu\b")
_OUR_KERNELS = "kns=splice"
"""Names of theirs, mangled, have this in them: all are of one namespace."""
_BESIDE_OTHERS = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "2"}
"""Plugins that happen to be installed take longer than the tests and need none; references are computed on the host,
and eight processes with a thread for each core stand in each other's way."""
_UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
"""Each tensor its own allocation: what is written behind one does not fall into another."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What became of one file's tests, perhaps under a checker. `failures` are names and last words."""

    name: str
    seconds: float
    passed: int
    skipped: int
    failures: tuple[str, ...]
    reasons: tuple[str, ...] = ()
    """Why tests were skipped, each once."""


Limit = Callable[[], float | None]
"""Seconds a process may take that begins now; None: it shall not."""


def files() -> list[Path]:
    """Those that run anything on a GPU: by the fixture or by the mark."""
    return [path for path in sorted(TESTS.glob("test_*.py")) if _ON_A_GPU.search(path.read_text())]


def checked_files() -> list[Path]:
    """Those of kernels of our own. Left out are tests of CUTLASS and Triton, and of whole models, which are slow under
    a checker and launch nothing else."""
    return [
        file for file in TESTS.glob("test_cuda_*.py") if not any(word in file.stem for word in _NOT_UNDER_A_CHECKER)
    ]


def run_tests(names: Sequence[str], scratch: Path, limit: Limit, jobs: int) -> Iterator[tuple[str, Proof | None]]:
    """Of each of these files that was begun its proof, else None; in the order in which they end."""
    yield from _side_by_side({name: partial(_run, name, name, scratch) for name in names}, limit, jobs)


def check_memory(names: Sequence[str], scratch: Path, limit: Limit, jobs: int) -> Iterator[tuple[str, Proof | None]]:
    """The same of names as `memcheck test_cuda_rows`: the tests of a file under compute-sanitizer, whose findings are
    failures. Raises FileNotFoundError where it is not installed."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        raise FileNotFoundError("compute-sanitizer is not installed")
    runs = {}
    for name in names:
        tool, _, file = name.partition(" ")
        wrapper = (program, "--tool", tool, "--error-exitcode", "9", "--kernel-name", _OUR_KERNELS)
        runs[name] = partial(_run, name, file, scratch, wrapper=wrapper, environment=_UNCACHED)
    yield from _side_by_side(runs, limit, jobs)


def listed() -> str:
    """Names of all tests, without running any."""
    command = [*_pytest(), "--collect-only", str(TESTS)]
    environment = os.environ | _BESIDE_OTHERS
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.stdout


def _side_by_side(
    runs: Mapping[str, Callable[[float], Proof]], limit: Limit, jobs: int
) -> Iterator[tuple[str, Proof | None]]:
    def run(name: str) -> tuple[str, Proof | None]:
        allowed = limit()
        return name, None if allowed is None else runs[name](allowed)

    with ThreadPoolExecutor(jobs) as pool:
        for done in as_completed([pool.submit(run, name) for name in runs]):
            yield done.result()


def _run(
    name: str,
    file: str,
    scratch: Path,
    limit_s: float,
    wrapper: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
) -> Proof:
    """The tests of a file that run on a GPU, perhaps under another program."""
    report = scratch / f"{name.replace(' ', '-')}.xml"
    command = [*wrapper, *_pytest(), "-m", "gpu", f"--junitxml={report}", str(TESTS / f"{file}.py")]
    begun = time.monotonic()
    code, said = run_limited(command, limit_s, ROOT, _BESIDE_OTHERS | (environment or {}))
    words = said[-1500:]
    seconds = time.monotonic() - begun
    if not report.exists():
        return Proof(name, seconds, 0, 0, (f"ended with {code}: {words}",))
    return _proof(name, seconds, list(ET.parse(report).getroot().iter("testcase")), code, words)  # noqa: S314 - ours


def _proof(name: str, seconds: float, cases: Sequence[ET.Element], code: int, words: str) -> Proof:
    failed = tuple(
        f"{case.get('name')}: {(trouble.get('message') or '')[:600]}"
        for case in cases
        for trouble in case
        if trouble.tag in ("failure", "error")
    )
    skipped = [found.get("message") or "no reason" for case in cases if (found := case.find("skipped")) is not None]
    if code not in (0, 1, 5) and not failed:
        failed = (f"ended with {code}: {words}",)
    passed = len(cases) - len(skipped) - len(failed)
    return Proof(name, seconds, max(0, passed), len(skipped), failed, tuple(dict.fromkeys(skipped)))


def _pytest() -> list[str]:
    own = ["-c", str(_INI), "--rootdir", str(ROOT), "--confcutdir", str(TESTS), "-p", "no:cacheprovider"]
    return [sys.executable, "-m", "pytest", "-q", *own]
