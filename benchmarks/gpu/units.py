"""Compiling the sources of `csrc/cuda`, each by itself, and linking those that could be."""

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

from engine.ops.cuda.sources import sources_digest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc" / "cuda"
LIBRARY = ROOT / "engine" / "libsplice_cuda.so"
_FLAGS = ("-std=c++17", "-O3", "-DNDEBUG", "--expt-relaxed-constexpr", "-lineinfo", "-Xptxas=-v", "-Xcompiler=-fPIC")


@dataclass(frozen=True, slots=True)
class Unit:
    """A line of units.txt."""

    name: str
    sources: tuple[str, ...]
    architectures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Compiled:
    """What became of a source; `error` is the compiler's last words, or why it was not tried."""

    name: str
    seconds: float
    registers: int
    """Of the kernel that takes most."""
    spilled_bytes: int
    error: str | None = None


def units() -> list[Unit]:
    """Those of units.txt. Raises ValueError for a line that is none."""
    found: list[Unit] = []
    for line in (SOURCES / "units.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        sources = tuple(word for word in rest.split() if not word[0].isdigit())
        architectures = tuple(word for word in rest.split() if word[0].isdigit())
        if not sources or not architectures:
            raise ValueError(f"units.txt: {line!r}, expected NAME: SOURCE… ARCHITECTURE…")
        found.append(Unit(name, sources, architectures))
    return found


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
    """Every source by itself, for one compute capability, such as `90`; links what compiled into the library. Without
    `include`, those sources that need CUTLASS fail with its name in their error."""
    scratch.mkdir(parents=True, exist_ok=True)
    named = " ".join(dict.fromkeys(f"sm_{target}" for unit in wanted if (target := _target(unit, capability))))
    identity = (f"-DSPLICE_CUDA_SOURCES={sources_digest()}", f"-DSPLICE_CUDA_TARGETS={named}")
    tasks = [(unit, source) for unit in wanted for source in unit.sources]

    def compiled(task: tuple[Unit, str]) -> Compiled:
        unit, source = task
        return _compile(unit, source, identity if source == "status" else (), capability, include, scratch)

    with ThreadPoolExecutor(jobs) as pool:
        done = list(pool.map(compiled, tasks))
    objects = [str(scratch / f"{one.name}.o") for one in done if one.error is None]
    code, output = _run([_nvcc(), "-shared", "-o", str(LIBRARY), *objects])
    if code:
        raise RuntimeError(f"the sources do not link:\n{output}")
    return done


def _target(unit: Unit, capability: str) -> str | None:
    """What to compile a unit for; None where it is for other GPUs alone."""
    specific = [name for name in unit.architectures if name.endswith("a")]
    if not specific:
        return capability
    return f"{capability}a" if f"{capability}a" in specific else None


def _compile(
    unit: Unit, source: str, defines: Sequence[str], capability: str, include: Path | None, scratch: Path
) -> Compiled:
    target = _target(unit, capability)
    if target is None:
        return Compiled(source, 0.0, 0, 0, f"is for sm_{', sm_'.join(unit.architectures)}, this is sm_{capability}")
    command = [_nvcc(), *_FLAGS, *defines, f"-I{SOURCES}", *([f"-I{include}"] if include else [])]
    command += [f"-gencode=arch=compute_{target},code=sm_{target}"]
    command += ["-c", str(SOURCES / f"{source}.cu"), "-o", str(scratch / f"{source}.o")]
    begun = time.monotonic()
    code, output = _run(command)
    registers = max((int(number) for number in re.findall(r"Used (\d+) registers", output)), default=0)
    spilled = sum(int(number) for number in re.findall(r"(\d+) bytes spill stores", output))
    return Compiled(source, time.monotonic() - begun, registers, spilled, output[-2000:] if code else None)


def _nvcc() -> str:
    return shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"


def _run(command: list[str]) -> tuple[int, str]:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.returncode, done.stdout
