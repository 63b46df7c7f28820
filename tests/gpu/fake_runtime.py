"""A device that is the CPU, and insists on the order of calls that real ones need."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch

from engine.device.device_lost import DeviceLost


@dataclass
class FakeFence:
    runtime: FakeRuntime

    def wait(self) -> None:
        self.runtime.calls.append("wait")
        self.runtime.settle()


MODEL_BYTES, STEP_BYTES, SHARED_BYTES, GRAPH_BYTES = 1 << 20, 1 << 19, 1 << 20, 1 << 17


class FakeRuntime:
    """See `DeviceRuntime`. What was copied to the host arrives no sooner than somebody waits for it, and memory that is
    written to while it is copied from is found out.

    Recorded work is run again at every replay. Its result is NaN until then, and from when other work is replayed: all
    of it computes in the same memory. One that `is_lost` says so to whoever waits for it, from then on. A thread is to
    enter before it has it do something; who made it has.

    As if steps that are launched took STEP_BYTES, kept until they are given back, as a capture does before it begins;
    the first capture SHARED_BYTES that all of them share, and each GRAPH_BYTES for itself.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.captures = 0
        self.is_lost = False
        self._thread = threading.get_ident()
        self._queue: list[_Copy] = []
        self._pinned: set[int] = set()
        self._is_capturing = False
        self._kept_bytes = 0
        self._results: list[torch.Tensor] = []

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def enter(self) -> None:
        self._thread = threading.get_ident()

    def pinned(self, num_bytes: int) -> torch.Tensor:
        assert not self._is_capturing, "host memory allocated by recorded work"
        memory = torch.full((num_bytes,), 0xEE, dtype=torch.uint8)
        self._pinned.add(memory.untyped_storage().data_ptr())
        return memory

    def upload(self, dest: torch.Tensor, source: torch.Tensor) -> FakeFence:
        assert source.untyped_storage().data_ptr() in self._pinned, "a copy by the device from memory it cannot reach"
        fence = self._queued("upload", _Copy(source, zlib.crc32(source.numpy()), None, None))
        self._kept_bytes = STEP_BYTES
        dest.copy_(source)
        return fence

    def download(self, dest: torch.Tensor, source: torch.Tensor) -> FakeFence:
        assert dest.untyped_storage().data_ptr() in self._pinned, "a copy by the device to memory it cannot reach"
        return self._queued("download", _Copy(None, 0, dest, source.clone()))

    def record(self) -> int:
        assert not self._is_capturing, "an event of its own in recorded work"
        self.calls.append("record")
        return len(self.calls)

    def capture(self, work: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        assert not self._is_capturing, "a capture within a capture"
        assert self._thread == threading.get_ident(), "a capture by a thread that has not entered"
        self.calls.append("capture")
        self.captures += 1
        self.drain()
        work()
        self.trim()
        self._is_capturing = True
        result = work().fill_(float("nan"))
        self._is_capturing = False
        self._results.append(result)

        def replay() -> None:
            assert not self._is_capturing, "a replay within a capture"
            self.calls.append("replay")
            found = work()
            for each in self._results:
                each.fill_(float("nan"))
            result.copy_(found)

        return result, replay

    def settle(self) -> None:
        if self.is_lost:
            raise DeviceLost("the device is lost")
        self.drain()

    def trim(self) -> None:
        self._kept_bytes = 0

    def forget_captures(self) -> None:
        self.calls.append("forget")
        self.trim()

    def reserved_bytes(self) -> int:
        graphs = SHARED_BYTES + self.captures * GRAPH_BYTES if self.captures else 0
        return MODEL_BYTES + graphs + self._kept_bytes

    def total_bytes(self) -> int:
        return 64 << 20

    def drain(self) -> None:
        """The device catches up."""
        for copy in self._queue:
            if copy.source is not None:
                assert zlib.crc32(copy.source.numpy()) == copy.digest, "memory was written to while it was copied"
            if copy.dest is not None:
                copy.dest.copy_(copy.content)
        self._queue.clear()

    def _queued(self, name: str, copy: _Copy) -> FakeFence:
        assert not self._is_capturing, f"{name} by recorded work"
        assert self._thread == threading.get_ident(), f"{name} by a thread that has not entered"
        self.calls.append(name)
        self._queue.append(copy)
        return FakeFence(self)


@dataclass
class _Copy:
    source: torch.Tensor | None
    """Host memory copied from, and what it held."""
    digest: int
    dest: torch.Tensor | None
    """Host memory copied to, and what comes to it."""
    content: torch.Tensor | None
