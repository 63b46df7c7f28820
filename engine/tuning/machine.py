"""What a measured choice holds for: this GPU, this driver, these libraries, these sources."""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass
from pathlib import Path

import torch

from engine.ops.cuda import driver
from engine.ops.cuda.library import Library

_ENGINE = Path(__file__).resolve().parents[1]
_PYTHON = ("tuning", "ops/cuda", "ops/triton")
"""Runners and what they call; csrc/cuda the library answers for."""


@dataclass(frozen=True, slots=True)
class MachineKey:
    """Where one of these differs, nothing is known."""

    gpu: str
    driver: str
    cuda: str
    sources: str
    torch: str

    @property
    def digest(self) -> str:
        """16 hexadecimal digits."""
        return hashlib.sha256("\n".join(astuple(self)).encode()).hexdigest()[:16]


def machine_key(library: Library) -> MachineKey:
    """Of this process's device. Raises SpliceError where the driver does not answer."""
    if library.device_type == "cpu":
        return MachineKey("emulator", "none", "none", sources(library), str(torch.__version__))
    name = torch.cuda.get_device_properties(torch.cuda.current_device()).name
    return MachineKey(name, driver.version(), str(torch.version.cuda), sources(library), str(torch.__version__))


def sources(library: Library) -> str:
    """A digest of the kernels' sources and of the Python that runs them."""
    digest = hashlib.sha256(library.build().sources.encode())
    for folder in _PYTHON:
        for path in sorted((_ENGINE / folder).glob("*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
