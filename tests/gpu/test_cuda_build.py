"""What the library is compiled from: every source once, in few units, by the same rules in both builds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_platform import EMULATED_UNITS, SOURCES

from benchmarks.gpu.units import units
from engine.ops.cuda.library import INSTALLED, Library
from engine.ops.cuda.sources import sources_digest


def test_every_source_belongs_to_one_of_at_most_ten_units():
    named = [source for unit in units() for source in unit.sources]
    assert sorted(named) == sorted(path.stem for path in SOURCES.glob("*.cu"))
    assert len(units()) <= 10
    assert set(EMULATED_UNITS) <= set(named)


def test_cmake_reads_the_same_units_and_digest(tmp_path):
    """The installer's configuration with a compiler that is none: what it would run is read off its build file."""
    done = _configure(tmp_path, "on", nvcc=True, cutlass=True)
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "build" / "build.ninja").read_text()
    compiled = {match[2]: match[1] for match in re.finditer(r"nvcc (.*) -c \S*/(\w+)\.cu -o", written)}
    assert sorted(compiled) == sorted(source for unit in units() for source in unit.sources)
    for unit in units():
        for source in unit.sources:
            assert tuple(re.findall(r"code=sm_(\w+)", compiled[source])) == unit.architectures
            assert ("code=compute_80" in compiled[source]) == ("80" in unit.architectures)
    assert f"-DSPLICE_CUDA_SOURCES={sources_digest()}" in compiled["status"]
    assert "sm_80 sm_90 sm_90a compute_80" in compiled["status"]


@pytest.mark.parametrize(
    ("nvcc", "cutlass", "said"),
    [
        (False, True, "there is no nvcc on PATH"),
        (True, False, "there are no headers of CUTLASS"),
        (False, False, "there is no nvcc on PATH"),
    ],
)
def test_what_is_missing_stops_on_and_only_informs_auto(tmp_path, nvcc, cutlass, said):
    stopped = _configure(tmp_path, "on", nvcc=nvcc, cutlass=cutlass)
    assert stopped.returncode != 0
    assert said in " ".join(stopped.stderr.split())
    informed = _configure(tmp_path, "auto", nvcc=nvcc, cutlass=cutlass)
    assert informed.returncode == 0
    assert f"CUDA kernels are not built: {said}" in informed.stdout
    assert "nvcc -shared" not in (tmp_path / "build" / "build.ninja").read_text()


def test_off_asks_for_nothing_and_another_word_is_refused(tmp_path):
    off = _configure(tmp_path, "off", nvcc=False, cutlass=False)
    assert off.returncode == 0
    assert "CUDA kernels" not in off.stdout
    bad = _configure(tmp_path, "yes", nvcc=True, cutlass=True)
    assert "SPLICE_CUDA is yes, expected on, off or auto" in bad.stderr


def _configure(folder: Path, choice: str, *, nvcc: bool, cutlass: bool) -> subprocess.CompletedProcess[str]:
    """CMake on csrc/cuda alone, on a machine that has these two, or not, whatever this one has."""
    compiler, headers, python = folder / "nvcc", folder / "cutlass" / "cutlass.h", folder / "python"
    headers.parent.mkdir(exist_ok=True)
    headers.write_text("")
    for program, text in ((compiler, "#!/bin/sh\n"), (python, f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')):
        program.write_text(text)
        program.chmod(0o755)
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\nproject(kernels LANGUAGES NONE)\n"
        f"set(Python_EXECUTABLE {python})\nadd_subdirectory({SOURCES} cuda)\n"
    )
    given = [f"-DSPLICE_CUDA={choice}"]
    given += [f"-DSPLICE_NVCC={compiler}"] if nvcc else [f"-DCMAKE_IGNORE_PATH={_places_of_nvcc()}"]
    given += [f"-DCUTLASS_INCLUDE_DIR={folder}"] if cutlass else []
    command = ["cmake", "--fresh", "-G", "Ninja", "-S", str(folder), "-B", str(folder / "build"), *given]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    if shutil.which("cmake", path=path) is None or shutil.which("ninja", path=path) is None:
        pytest.skip("no cmake and ninja")
    return subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False)


def _places_of_nvcc() -> str:
    folders = {Path(folder) for folder in os.environ["PATH"].split(os.pathsep)} | {Path("/usr/local/cuda/bin")}
    if home := os.environ.get("CUDA_HOME"):
        folders.add(Path(home, "bin"))
    return ";".join(str(folder) for folder in folders if (folder / "nvcc").exists())


def test_a_library_says_what_it_was_built_for(platform):
    build = platform.library.build()
    if platform.name == "emulated":
        assert build == type(build)("unknown", (), 0)
        return
    assert build.runtime >= 12000
    assert any(target.startswith("sm_") for target in build.targets)


@pytest.mark.skipif(not INSTALLED.exists(), reason="libsplice_cuda is not built here: make cuda")
def test_an_installed_library_can_be_asked_without_a_gpu():
    build = Library().build()
    assert re.fullmatch(r"[0-9a-f]{16}", build.sources)
    assert build.runtime >= 12000
