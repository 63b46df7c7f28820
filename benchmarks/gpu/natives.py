"""The engine's own native modules, for the Python of a check: built in a scratch folder where they are not there.

Sampling, the CPU's kernels that quantised products are compared with, and the pool of a hand-off. gRPC stubs are not
among them: nothing of a check speaks gRPC.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.limited import run_limited
from benchmarks.gpu.units import ROOT

MODULES = {"engine._sampling": "_sampling", "engine._native": "_native", "kvtransfer._native": "kvtransfer_native"}
"""Module: its target in csrc."""
_CPU_KERNELS = "avx2"
"""All instruction sets give the same bits: one is enough to compare with, and takes a quarter of the time."""
_CONFIGURE_S = 60.0
_ASK = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError:
        print(name)
"""


@dataclass(frozen=True, slots=True)
class Natives:
    """What became of them; `error` is the builder's last words."""

    seconds: float
    built: tuple[str, ...]
    error: str | None = None


def missing() -> list[str]:
    """Modules that this Python does not find, or that are not for it. Asked of another process, so that this one has
    imported none of them."""
    done = subprocess.run(
        [sys.executable, "-c", _ASK, *sorted(MODULES)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.split() if done.returncode == 0 else sorted(MODULES)


def build(
    wanted: list[str], scratch: Path, jobs: int, limit_s: float, run: Callable[..., tuple[int, str]] = run_limited
) -> Natives:
    """Into their packages, where git ignores them."""
    begun = time.monotonic()
    cmake = _beside_python("cmake")
    if cmake is None:
        return Natives(0.0, (), "there is no cmake: the engine's native modules are not built")
    folder = scratch / "natives"
    configure = [cmake, "-S", str(ROOT), "-B", str(folder), "-DSPLICE_CUDA=off", f"-DSPLICE_CPU_ISAS={_CPU_KERNELS}"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", *(["-GNinja"] if _beside_python("ninja") else [])]
    targets = [MODULES[name] for name in wanted]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    for command, limit in (
        (configure, _CONFIGURE_S),
        ([cmake, "--build", str(folder), "-j", str(jobs), "--target", *targets], limit_s),
    ):
        code, said = run(command, limit, ROOT, {"PATH": path})
        if code:
            return Natives(time.monotonic() - begun, (), f"the engine's native modules do not build: {said[-1500:]}")
    for module in wanted:
        package, _, name = module.partition(".")
        for library in (folder / "csrc").rglob(f"{name}.*.so"):
            if _is_of(package, library, folder):
                shutil.copy2(library, ROOT / package / library.name)
    return Natives(time.monotonic() - begun, tuple(wanted))


def _is_of(package: str, library: Path, folder: Path) -> bool:
    room = library.relative_to(folder / "csrc").parts[0]
    return (room == "kv") == (package == "kvtransfer") and room != "cuda"


def _beside_python(program: str) -> str | None:
    """One that pip put beside the interpreter, else of the system."""
    return shutil.which(program, path=str(Path(sys.executable).parent)) or shutil.which(program)
