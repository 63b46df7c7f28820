"""Which failures of a step are the device's own: asked of the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from engine.device.device_lost import DeviceLost
from engine.device.runtime import DeviceRuntime
from wire.errors import ErrorCode, SpliceError

_SHORT_OF_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


@contextmanager
def device_guard(runtime: DeviceRuntime, doing: str) -> Iterator[None]:
    """Enters the device, and raises DeviceLost in place of what goes wrong inside where the device is lost with it, as
    by an illegal access, or where its memory ran out; anything else passes as it is.

    A device that is lost says so to whoever waits for it from then on; one that refused a launch does not.
    """
    try:
        runtime.enter()
        yield
    except DeviceLost:
        raise
    except Exception as error:
        shortage = _shortage(error)
        if shortage is not None:
            raise DeviceLost(
                f"the GPU's memory ran out while {doing}: leave more of it beside the KV cache, by a lower "
                f"--gpu-memory-utilization or --kv-cache-memory ({shortage})"
            ) from error
        try:
            runtime.settle()
        except DeviceLost as lost:
            raise DeviceLost(f"{lost.message}; first seen while {doing}: {error}") from error
        raise


@contextmanager
def start_guard(runtime: DeviceRuntime, doing: str, remedy: str, param: str) -> Iterator[None]:
    """At a worker's start: memory that does not suffice is a setting to change, and is said as one.

    Raises SpliceError (bad_setting) with `remedy`, naming `param`; DeviceLost as `device_guard` does.
    """
    try:
        with device_guard(runtime, doing):
            yield
    except DeviceLost as lost:
        shortage = _shortage(lost)
        if shortage is None:
            raise
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            f"the GPU's {runtime.total_bytes() >> 20} MiB did not suffice while {doing}: {remedy} ({shortage})",
            param=param,
        ) from lost


def _shortage(error: BaseException | None) -> BaseException | None:
    """Memory that ran out, at the bottom of an error: a capture it interrupts ends with an error of its own."""
    while error is not None and not _is_shortage(error):
        error = error.__cause__ or error.__context__
    return error


def _is_shortage(error: BaseException) -> bool:
    """Of torch's allocator, or, where a kernel's code or a library's workspace was to be allocated, of CUDA."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    is_of_cuda = isinstance(error, RuntimeError | SpliceError) and not isinstance(error, DeviceLost)
    return is_of_cuda and any(words in str(error) for words in _SHORT_OF_MEMORY)
