"""Where kernels are tested: in the emulator, compiled here with the C++ compiler, or on a GPU."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch

from engine.ops.cuda.library import INSTALLED, Library

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc" / "cuda"
EMULATED_UNITS = (
    "status",
    "norm",
    "gate",
    "rope_store",
    "kv_copy",
    "kv_checksum",
    "decode_attention",
    "prefill_attention",
    "prefill_attention_sm90",
    "sampling",
    "quantise_fp8",
    "gemm_fp8_weights",
    "quantise_rows",
    "block_gemm",
    "block_gemm_wide",
    "w4a16_gemm",
    "block_rows",
    "route",
    "permute",
    "gather_fp8",
    "grouped_gemm",
    "grouped_fp8_weights",
    "store_latents",
    "latent_attention",
    "latent_attention_sm90",
    "head_products",
)
_FLAGS = ("-std=c++20", "-O1", "-ffp-contract=off", "-fPIC", "-Wall", "-Wextra", "-Werror")


@dataclass(frozen=True, slots=True)
class Platform:
    """A library of kernels and the device its tensors are on. Shapes are chosen to suit its speed."""

    name: Literal["emulated", "gpu"]
    library: Library
    device: torch.device

    def pick(self, emulated: int, gpu: int) -> int:
        """A size: emulated threads take their turns on one core."""
        return emulated if self.name == "emulated" else gpu

    def has_warpgroups(self, function: str) -> bool:
        """Whether it runs a kernel of products of warpgroups: the emulator, and Hopper where it was built."""
        if not self.library.has(function):
            return False
        return self.name == "emulated" or torch.cuda.get_device_capability()[0] == 9


def why_no_gpu() -> str | None:
    """What is missing for the tests on a GPU; None if nothing is."""
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    if not INSTALLED.exists():
        return f"{INSTALLED} is not built: run scripts/gpu_check"
    return None


def emulated() -> Platform:
    """Compiles the kernels for the emulator, once for the sources as they are."""
    return Platform("emulated", Library(_built()), torch.device("cpu"))


def gpu() -> Platform:
    return Platform("gpu", Library(), torch.device("cuda"))


def _built() -> Path:
    files = sorted(path for path in SOURCES.rglob("*") if path.suffix in {".cu", ".h", ".cpp"})
    digest = hashlib.sha256(" ".join(_FLAGS).encode())
    for path in files:
        digest.update(path.relative_to(SOURCES).as_posix().encode() + b"\0" + path.read_bytes())
    place = ROOT / "build" / "emulated" / digest.hexdigest()[:16]
    library = place / "libsplice_cuda_emulated.so"
    if library.exists():
        return library
    place.mkdir(parents=True, exist_ok=True)
    for older in place.parent.iterdir():
        if older != place:
            shutil.rmtree(older, ignore_errors=True)
    units = [SOURCES / f"{name}.cu" for name in EMULATED_UNITS] + [SOURCES / "emulator" / "emulator.cpp"]
    # Another process may be compiling the same.
    with TemporaryDirectory(prefix="emulated-", dir=ROOT / "build") as own, ThreadPoolExecutor(max_workers=2) as pool:
        objects = list(pool.map(lambda unit: _compiled(unit, Path(own)), units))
        made = Path(own) / library.name
        _run("g++", "-shared", "-o", str(made), *objects)
        os.replace(made, library)
    return library


def _compiled(unit: Path, place: Path) -> str:
    out = str(place / f"{unit.stem}.o")
    _run("g++", *_FLAGS, "-x", "c++", "-c", str(unit), "-o", out)
    return out


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
