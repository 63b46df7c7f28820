"""What the NVIDIA driver says of itself and of the GPUs, asked of its own libraries: no toolkit, no torch, no
context."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

from wire.errors import ErrorCode, SpliceError

_CUDA, _MANAGEMENT = "libcuda.so.1", "libnvidia-ml.so.1"
_KERNEL_MODULE = Path("/proc/driver/nvidia/version")
_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


@dataclass(frozen=True, slots=True)
class Device:
    name: str
    capability: tuple[int, int]


def version() -> str:
    """Of the driver, such as 580.95.05. Raises SpliceError where none answers."""
    text = ctypes.create_string_buffer(80)
    try:
        library = ctypes.CDLL(_MANAGEMENT)
        _ask(library, "nvmlInit_v2")
        _ask(library, "nvmlSystemGetDriverVersion", text, ctypes.c_uint(len(text)))
        return text.value.decode()
    except OSError as error:
        raise SpliceError(ErrorCode.MISSING_PART, f"no NVIDIA driver answers: {error}") from None


def cuda_version() -> int:
    """The newest CUDA the driver knows, as 13000. Raises SpliceError where it is not installed."""
    found = ctypes.c_int()
    _ask(_cuda(), "cuDriverGetVersion", ctypes.byref(found))
    return found.value


def devices() -> list[Device]:
    """The GPUs this process may use. Raises SpliceError with the driver's own words where it finds none."""
    library = _cuda()
    _ask(library, "cuInit", ctypes.c_uint(0))
    count = ctypes.c_int()
    _ask(library, "cuDeviceGetCount", ctypes.byref(count))
    return [_device(library, index) for index in range(count.value)]


def kernel_module() -> str | None:
    """The first line of what the loaded kernel module says; None where none is loaded."""
    try:
        return _KERNEL_MODULE.read_text().splitlines()[0].strip()
    except (OSError, IndexError):
        return None


def _device(library: ctypes.CDLL, index: int) -> Device:
    device, name, numbers = ctypes.c_int(), ctypes.create_string_buffer(256), (ctypes.c_int(), ctypes.c_int())
    _ask(library, "cuDeviceGet", ctypes.byref(device), ctypes.c_int(index))
    _ask(library, "cuDeviceGetName", name, ctypes.c_int(len(name)), device)
    for number, attribute in zip(numbers, (_MAJOR, _MINOR), strict=True):
        _ask(library, "cuDeviceGetAttribute", ctypes.byref(number), ctypes.c_int(attribute), device)
    return Device(name.value.decode(), (numbers[0].value, numbers[1].value))


def _cuda() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(_CUDA)
    except OSError as error:
        raise SpliceError(ErrorCode.MISSING_PART, f"no NVIDIA driver: {error}") from None


def _ask(library: ctypes.CDLL, function: str, *arguments: object) -> None:
    code = getattr(library, function)(*arguments)
    if code == 0:
        return
    words = ctypes.c_char_p()
    if hasattr(library, "cuGetErrorString"):
        library.cuGetErrorString(ctypes.c_int(code), ctypes.byref(words))
    said = words.value.decode() if words.value else "no words for it"
    raise SpliceError(ErrorCode.INTERNAL_ERROR, f"{function} of the driver failed with {code}: {said}")
