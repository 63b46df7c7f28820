"""An NVIDIA GPU through torch. Not yet run on a GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from engine.device.device_lost import DeviceLost
from wire.errors import ErrorCode, SpliceError


@dataclass(frozen=True, slots=True)
class EventFence:
    """See `Fence`."""

    event: torch.cuda.Event

    def wait(self) -> None:
        """See `Fence.wait`."""
        try:
            self.event.synchronize()
        except RuntimeError as error:
            raise _lost(error) from error


@dataclass(frozen=True, slots=True)
class _Place:
    """Memory by its address, for torch to view without owning it."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In bytes."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        data = (self.address, False)
        return {"shape": self.shape, "strides": self.strides, "typestr": "<f4", "data": data, "version": 3}


class CudaRuntime:
    """See `DeviceRuntime`. All work is on the current stream of the thread that computes steps."""

    def __init__(self, index: int = 0) -> None:
        """Raises SpliceError where torch sees no such GPU."""
        if not torch.cuda.is_available() or index >= torch.cuda.device_count():
            raise SpliceError(
                ErrorCode.MISSING_PART,
                f"torch {torch.__version__} sees no GPU number {index}: see what `splice doctor` says, or use "
                "--device cpu",
                param="device",
            )
        self._device = torch.device("cuda", index)
        self._pool: Any = None
        self._mark: torch.cuda.Event | None = None
        self._thread = threading.local()
        self.enter()
        self._taken_before = self._taken()

    @property
    def device(self) -> torch.device:
        """See `DeviceRuntime.device`."""
        return self._device

    @property
    def capability(self) -> tuple[int, int]:
        """(major, minor) of the compute capability."""
        return torch.cuda.get_device_capability(self._device)

    def enter(self) -> None:
        """See `DeviceRuntime.enter`."""
        if not getattr(self._thread, "entered", False):  # not by its number, which the next thread may have
            torch.cuda.set_device(self._device)
            self._thread.entered = True

    def pinned(self, num_bytes: int) -> torch.Tensor:
        """See `DeviceRuntime.pinned`."""
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def upload(self, dest: torch.Tensor, source: torch.Tensor) -> EventFence:
        """See `DeviceRuntime.upload`."""
        return self._copy(dest, source)

    def download(self, dest: torch.Tensor, source: torch.Tensor) -> EventFence:
        """See `DeviceRuntime.download`."""
        return self._copy(dest, source)

    def record(self) -> int:
        """See `DeviceRuntime.record`."""
        try:
            if self._mark is None:
                self._mark = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._mark.record()
        except RuntimeError as error:
            raise _lost(error) from error
        return int(self._mark.cuda_event)

    def capture(self, work: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        """See `DeviceRuntime.capture`."""
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream(self._device)
        try:
            work()
            torch.cuda.synchronize(self._device)
            # Of this thread alone: others may ask for events of their hand-offs meanwhile, which a global capture
            # forbids to all.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                result = work()
        except RuntimeError as error:
            raise SpliceError(ErrorCode.INTERNAL_ERROR, f"capturing a step failed on the GPU: {error}") from error
        finally:
            # torch leaves the thread on the stream of a capture that failed, apart from all that was queued before.
            torch.cuda.set_stream(stream)
        if self._pool is None:
            self._pool = graph.pool()
        # The graph's result is where it is as long as the graph is. Nobody owns that place, or no later graph could
        # compute there, and each would keep rows times the vocabulary for itself.
        strides = tuple(step * result.element_size() for step in result.stride())
        place = _Place(result.data_ptr(), tuple(result.shape), strides)
        return torch.as_tensor(place, device=self._device), graph.replay

    def settle(self) -> None:
        """See `DeviceRuntime.settle`."""
        try:
            event = _new_event()
            event.record()
            event.synchronize()
        except RuntimeError as error:
            raise _lost(error) from error

    def trim(self) -> None:
        """See `DeviceRuntime.trim`."""
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()

    def forget_captures(self) -> None:
        """See `DeviceRuntime.forget_captures`."""
        self._pool = None
        self.trim()

    def reserved_bytes(self) -> int:
        """See `DeviceRuntime.reserved_bytes`; graphs' own memory, which torch does not count, included. So is what
        another process takes meanwhile."""
        return self._taken() - self._taken_before

    def total_bytes(self) -> int:
        """See `DeviceRuntime.total_bytes`."""
        return int(torch.cuda.mem_get_info(self._device)[1])

    def _taken(self) -> int:
        free, total = torch.cuda.mem_get_info(self._device)
        return int(total - free)

    def _copy(self, dest: torch.Tensor, source: torch.Tensor) -> EventFence:
        dest.copy_(source, non_blocking=True)
        event = _new_event()
        event.record()
        return EventFence(event)


def _new_event() -> torch.cuda.Event:
    """One whose waiter sleeps. One that spins takes a processor from the other threads, and a device that hangs would
    look like a thread at work (`worker.engine_watch`)."""
    return torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]


def _lost(error: RuntimeError) -> DeviceLost:
    """An error that comes back from waiting is of a kernel that ended badly, and CUDA repeats it for ever."""
    return DeviceLost(f"the GPU is lost to this process: {error}")
