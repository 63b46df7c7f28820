"""Compiling the units of `csrc/cuda`, each by itself, and linking those that could be."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc" / "cuda"
LIBRARY = ROOT / "engine" / "libsplice_cuda.so"
_FLAGS = ("-std=c++17", "-O3", "-DNDEBUG", "--expt-relaxed-constexpr", "-lineinfo", "-Xptxas=-v", "-Xcompiler=-fPIC")


@dataclass(frozen=True, slots=True)
class Unit:
    name: str
    architectures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Compiled:
    """What became of a unit; `error` is the compiler's last words, or why it was not tried."""

    name: str
    seconds: float
    registers: int
    """Of the kernel that takes most."""
    spilled_bytes: int
    error: str | None = None


def units() -> list[Unit]:
    """Those of units.txt."""
    lines = (line.split() for line in (SOURCES / "units.txt").read_text().splitlines())
    return [Unit(words[0], tuple(words[1:])) for words in lines if words and not words[0].startswith("#")]


def cutlass_headers(parts: Path, scratch: Path) -> Path:
    """The include folder of CUTLASS: in `parts`, in a wheel of nvidia-cutlass there, or in an installed one.

    Raises FileNotFoundError where there is none.
    """
    for folder in (parts, parts / "include"):
        if (folder / "cutlass" / "cutlass.h").exists():
            return folder
    unpacked = scratch / "cutlass"
    for wheel in sorted(parts.glob("nvidia_cutlass-*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            prefix = "cutlass_library/source/include/"
            archive.extractall(unpacked, [name for name in archive.namelist() if name.startswith(prefix)])
        return unpacked / "cutlass_library" / "source" / "include"
    raise FileNotFoundError(f"no headers of CUTLASS and no nvidia_cutlass-*.whl in {parts}")


def compile_all(
    wanted: Sequence[Unit], capability: str, include: Path | None, scratch: Path, jobs: int
) -> list[Compiled]:
    """For one compute capability, such as `90`; links what compiled into the library. Without `include`, those units
    that need CUTLASS fail with its name in their error."""
    scratch.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        done = list(pool.map(lambda unit: _compile(unit, capability, include, scratch), wanted))
    objects = [str(scratch / f"{one.name}.o") for one in done if one.error is None]
    code, output = _run([_nvcc(), "-shared", "-o", str(LIBRARY), *objects])
    if code:
        raise RuntimeError(f"the units do not link:\n{output}")
    return done


def _compile(unit: Unit, capability: str, include: Path | None, scratch: Path) -> Compiled:
    specific = [name for name in unit.architectures if name.endswith("a")]
    if specific and f"{capability}a" not in specific:
        return Compiled(unit.name, 0.0, 0, 0, f"is for sm_{', sm_'.join(specific)}, this is sm_{capability}")
    target = f"{capability}a" if specific else capability
    command = [_nvcc(), *_FLAGS, f"-I{SOURCES}", *([f"-I{include}"] if include else [])]
    command += [f"-gencode=arch=compute_{target},code=sm_{target}"]
    command += ["-c", str(SOURCES / f"{unit.name}.cu"), "-o", str(scratch / f"{unit.name}.o")]
    begun = time.monotonic()
    code, output = _run(command)
    registers = max((int(number) for number in re.findall(r"Used (\d+) registers", output)), default=0)
    spilled = sum(int(number) for number in re.findall(r"(\d+) bytes spill stores", output))
    return Compiled(unit.name, time.monotonic() - begun, registers, spilled, output[-2000:] if code else None)


def _nvcc() -> str:
    return shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"


def _run(command: list[str]) -> tuple[int, str]:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.returncode, done.stdout
