"""`splice` on a GPU that is not there (`python -m tests.gpu.emulated_splice worker --device cuda …`).

Kernels run in the emulator, steps on a runtime that checks the order of calls, and hand-offs on a driver that does,
between real processes. Everything else is what a worker on a GPU is: settings, loading, sizing and capturing, the
engine's thread, registration, both roles. What a judge of an order found wrong ends the process with status 3.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

_TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_TESTS / "gpu"), str(_TESTS / "unit" / "kvtransfer")]

import kernel_platform  # noqa: E402 (found there)
import torch  # noqa: E402
from fake_device import FakeDevice, FakeKernels  # noqa: E402
from fake_runtime import FakeRuntime  # noqa: E402

from engine.models import on_gpu  # noqa: E402
from kvtransfer.device_pool import DevicePoolMemory  # noqa: E402
from splice.cli.main import app  # noqa: E402
from worker import pool_place  # noqa: E402

GPU_BYTES = 64 << 20
BREACH = 3


class EmulatedRuntime(FakeRuntime):
    """One as `build_on_gpu` makes it."""

    def __init__(self, device: FakeDevice, index: int) -> None:
        """Its queue is a stream of the device that hand-offs use: their events know of each other."""
        super().__init__()
        assert index == 0, "there is one GPU"
        torch.set_num_threads(1)
        self._on = device
        self._stream = self._event = 0

    def record(self) -> int:
        if not self._stream:
            self._stream, self._event = self._on.new_stream(), self._on.new_event()
        self._on.launch(lambda: None, [], [], self._stream)
        self._on.record(self._event, self._stream)
        return self._event

    @property
    def capability(self) -> tuple[int, int]:
        return (8, 0)

    def total_bytes(self) -> int:
        return GPU_BYTES


def memory_of(pool: DevicePoolMemory, index: int) -> torch.Tensor:
    """As the emulator's kernels reach it, past the driver."""
    del index
    device: FakeDevice = pool.runtime  # type: ignore[assignment]
    memory = torch.frombuffer(device.memory(pool.address), dtype=torch.uint8, count=pool.nbytes)
    return memory.view(pool.num_blocks, pool.layout.block_bytes)


def install(device: FakeDevice, put: Callable[[object, str, object], None] = setattr) -> None:
    """In place of what a worker asks of CUDA; by `put`."""
    library = kernel_platform.emulated().library
    put(on_gpu, "Library", lambda: library)
    put(on_gpu, "CudaRuntime", lambda index: EmulatedRuntime(device, index))
    put(pool_place, "CudaRuntime", lambda index: device)
    put(pool_place, "CudaBlockKernels", lambda path, spans: FakeKernels(device))
    put(pool_place, "blocks_of", memory_of)


def main() -> None:
    device = FakeDevice(seed=os.getpid(), nbytes=2 * GPU_BYTES, host_addresses=True)
    install(device)
    try:
        app()
    finally:
        if device.breaches:
            print("breaches:", *device.breaches, sep="\n", flush=True)
            os._exit(BREACH)


if __name__ == "__main__":
    main()
