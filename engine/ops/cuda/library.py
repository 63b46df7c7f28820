"""The shared library of CUDA kernels: opened once, asked what it is, called with errors as exceptions.

A library holds those units that could be compiled; a function that is missing is an error when it is called, not
before.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.ops.cuda.structs import ABI
from wire.errors import ErrorCode, SpliceError

INSTALLED = Path(__file__).resolve().parents[2] / "libsplice_cuda.so"
"""Where the build puts it."""
_OK, _INVALID = 0, 1


@dataclass(frozen=True, slots=True)
class Build:
    """Of a library: see the end of `splice_cuda.h`."""

    sources: str
    targets: tuple[str, ...]
    runtime: int


class Library:
    """An open library. `device_type` is what its tensors must be on: `cuda`, or `cpu` for the emulator."""

    def __init__(self, path: Path = INSTALLED) -> None:
        """Raises SpliceError where there is none or it was built from other sources than this file goes with."""
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise SpliceError(
                ErrorCode.MISSING_PART,
                f"no CUDA kernels at {path} ({error}); build them where nvcc is: make cuda",
            ) from None
        found = self._library.splice_cuda_abi()
        if found != ABI:
            raise SpliceError(
                ErrorCode.MISSING_PART, f"{path} has ABI {found}, expected {ABI}: build it again with make cuda"
            )
        self._library.splice_cuda_error.restype = ctypes.c_char_p
        self.path = path
        self._functions: dict[str, ctypes._NamedFuncPointer] = {}
        self.device_type = "cpu" if self._library.splice_cuda_emulated() else "cuda"

    def build(self) -> Build:
        """What it was built from and for."""
        texts = [self.function(name) for name in ("sources", "targets")]
        for function in texts:
            function.restype = ctypes.c_char_p
        sources, targets = (function().decode() for function in texts)
        return Build(sources, tuple(targets.split()), int(self.function("runtime")()))

    def has(self, function: str) -> bool:
        """Whether the unit with this function was compiled in."""
        return hasattr(self._library, f"splice_cuda_{function}")

    def function(self, name: str) -> ctypes._NamedFuncPointer:
        """The C function itself. Raises SpliceError where its unit is missing."""
        found = self._functions.get(name)
        if found is not None:
            return found
        if not self.has(name):
            raise SpliceError(ErrorCode.MISSING_PART, f"{self.path} was built without {name}: see what make cuda said")
        pointer: ctypes._NamedFuncPointer = getattr(self._library, f"splice_cuda_{name}")
        self._functions[name] = pointer
        return pointer

    def call(self, name: str, arguments: ctypes.Structure) -> None:
        """Launches on the current stream. Raises SpliceError with the library's own words where it would not."""
        code = self.function(name)(ctypes.byref(arguments), ctypes.c_void_p(self._stream()))
        if code == _OK:
            return
        text = self._library.splice_cuda_error().decode()
        raise SpliceError(ErrorCode.INVALID_REQUEST if code == _INVALID else ErrorCode.INTERNAL_ERROR, text)

    def _stream(self) -> int:
        return 0 if self.device_type == "cpu" else int(torch.cuda.current_stream().cuda_stream)
