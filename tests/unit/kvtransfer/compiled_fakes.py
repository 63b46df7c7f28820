"""Libraries of host memory with the names of CUDA's driver and of NCCL, compiled for tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

FOLDER = Path(__file__).parent / "driver"


def cuda_headers(name: str) -> Path | None:
    """The folder with this header of the CUDA toolkit."""
    nvcc = shutil.which("nvcc")
    places = [Path(os.path.realpath(nvcc)).parents[1] / "include"] if nvcc else []
    places += [Path("/usr/local/cuda/include")]
    return next((place for place in places if (place / name).exists()), None)


def compiled(source: str, library: Path, *flags: str) -> str:
    """Path of the library made from a source in `driver`."""
    command = ["g++", "-std=c++17", "-shared", "-fPIC", "-Wall", "-Werror", *flags, str(FOLDER / source)]
    built = subprocess.run([*command, "-o", str(library)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return str(library)
