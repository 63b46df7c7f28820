"""Compiling the sources of `csrc/cuda`, each by itself, and linking those that could be."""

from __future__ import annotations

import re
import shutil
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.gpu.limited import run_limited
from engine.ops.cuda.library import Build, Library
from engine.ops.cuda.sources import sources_digest
from wire.errors import SpliceError

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc" / "cuda"
LIBRARY = ROOT / "engine" / "libsplice_cuda.so"
_LINK_S = 60.0
_BASE = "status"
"""The source of what every other calls."""
_FUNCTION = re.compile(r'^(?:extern "C" )?int splice_cuda_(\w+)\([^;{)]*void\* stream\)\s*\{', re.MULTILINE)
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


def already_built(wanted: Sequence[Unit], capability: str) -> Build | None:
    """Of a library that is there, where it was built from these very sources for this capability and has every function
    of the units; None where it has to be built. One that was built elsewhere will do."""
    try:
        library = Library(LIBRARY)
        build = library.build()
    except SpliceError:
        return None
    targets = {f"sm_{target}" for unit in wanted if (target := target_of(unit, capability))}
    functions = {
        name
        for unit in wanted
        if target_of(unit, capability)
        for source in unit.sources
        for name in launches((SOURCES / f"{source}.cu").read_text())
    }
    is_whole = targets <= set(build.targets) and all(library.has(name) for name in functions)
    return build if is_whole and build.sources == sources_digest() else None


def launches(text: str) -> set[str]:
    """The functions that a source exports and that launch something."""
    return set(_FUNCTION.findall(text))


def compile_all(
    wanted: Sequence[Unit], capability: str, include: Path | None, scratch: Path, jobs: int, limit_s: float = 3600.0
) -> list[Compiled]:
    """Every source by itself, for one compute capability, such as `90`; links what compiled into the library. Without
    `include`, those sources that need CUTLASS fail with its name in their error; so does what is not compiled
    `limit_s` from now. Those that take longest begin first. What does not link is named `link`."""
    scratch.mkdir(parents=True, exist_ok=True)
    named = " ".join(dict.fromkeys(f"sm_{target}" for unit in wanted if (target := target_of(unit, capability))))
    identity = (f"-DSPLICE_CUDA_SOURCES={sources_digest()}", f"-DSPLICE_CUDA_TARGETS={named}")
    tasks = [(unit, source) for unit in wanted for source in unit.sources]
    ends_s = time.monotonic() + limit_s

    def compiled(task: tuple[Unit, str]) -> Compiled:
        unit, source = task
        defines = identity if source == "status" else ()
        return _compile(unit, source, defines, capability, include, scratch, ends_s)

    with ThreadPoolExecutor(jobs) as pool:
        # By the order of units.txt, in which those through CUTLASS come last.
        begun = {task: pool.submit(compiled, task) for task in reversed(tasks)}
        done = [begun[task].result() for task in tasks]
    done = without_needy(done, scratch)
    error = _link([scratch / f"{one.name}.o" for one in done if one.error is None], scratch / LIBRARY.name)
    return done if error is None else [*done, Compiled("link", 0.0, 0, 0, error)]


def _link(objects: Sequence[Path], linked: Path) -> str | None:
    """Into the library, at once or not at all; what is wrong otherwise."""
    if not objects:
        return "no source was compiled"
    code, output = run_limited([_nvcc(), "-shared", "-o", str(linked), *map(str, objects)], _LINK_S)
    if code:
        return f"the sources do not link: {output[-1500:]}"
    new = LIBRARY.with_suffix(".new")
    shutil.copy2(linked, new)
    new.replace(LIBRARY)
    return None


def chosen_units(names: Sequence[str]) -> list[Unit]:
    """Those of these names, all where there are none, and what a library cannot be without. Raises ValueError for a
    name that is none."""
    every = units()
    if unknown := set(names) - {unit.name for unit in every}:
        raise ValueError(f"--units: no {', '.join(sorted(unknown))}, expected some of {[unit.name for unit in every]}")
    if not names:
        return every
    base = [replace(unit, sources=(_BASE,)) for unit in every if _BASE in unit.sources and unit.name not in names]
    return [*base, *(unit for unit in every if unit.name in names)]


def without_needy(done: Sequence[Compiled], scratch: Path) -> list[Compiled]:
    """Those that call what another source was to have, which did not compile, fail too: a library with a hole in it
    cannot be opened at all."""
    found = list(done)
    symbols = {one.name: _symbols(scratch / f"{one.name}.o") for one in found if one.error is None}
    while True:
        there = frozenset().union(*(defined for defined, _ in symbols.values()))
        needy = {name: needed - there for name, (_, needed) in symbols.items() if needed - there}
        if not needy:
            return found
        for place, one in enumerate(found):
            if one.name in needy:
                error = f"needs {', '.join(sorted(needy[one.name]))}, whose source was not compiled"
                found[place] = replace(one, error=error)
                del symbols[one.name]


def _symbols(file: Path) -> tuple[frozenset[str], frozenset[str]]:
    """(defined, needed) in an object: those of ours. None where nm cannot say."""
    code, output = run_limited(["nm", "--format=posix", str(file)], _LINK_S)
    found = [line.split() for line in output.splitlines()] if code == 0 else []
    ours = [(words[0], words[1]) for words in found if len(words) > 1 and "splice" in words[0]]
    needed = frozenset(name for name, kind in ours if kind == "U")
    return frozenset(name for name, kind in ours if kind in "TDBRVW"), needed


def target_of(unit: Unit, capability: str) -> str | None:
    """What to compile a unit for; None where it is for other GPUs alone."""
    specific = [name for name in unit.architectures if name.endswith("a")]
    if not specific:
        return capability
    return f"{capability}a" if f"{capability}a" in specific else None


def _compile(
    unit: Unit,
    source: str,
    defines: Sequence[str],
    capability: str,
    include: Path | None,
    scratch: Path,
    ends_s: float,
) -> Compiled:
    target = target_of(unit, capability)
    if target is None:
        return Compiled(source, 0.0, 0, 0, f"is for sm_{', sm_'.join(unit.architectures)}, this is sm_{capability}")
    command = [_nvcc(), *_FLAGS, *defines, f"-I{SOURCES}", *([f"-I{include}"] if include else [])]
    command += [f"-gencode=arch=compute_{target},code=sm_{target}"]
    command += ["-c", str(SOURCES / f"{source}.cu"), "-o", str(scratch / f"{source}.o")]
    begun = time.monotonic()
    code, output = run_limited(command, max(1.0, ends_s - begun))
    registers = max((int(number) for number in re.findall(r"Used (\d+) registers", output)), default=0)
    spilled = sum(int(number) for number in re.findall(r"(\d+) bytes spill stores", output))
    return Compiled(source, time.monotonic() - begun, registers, spilled, output[-2000:] if code else None)


def _nvcc() -> str:
    return shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
