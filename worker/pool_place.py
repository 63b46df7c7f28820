"""Where a worker's KV blocks lie: memory of the CPU, or of the GPU that computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.blocks.kv_cache import KVCache, KVMemory
from engine.device.device_lost import DeviceLost
from engine.models.causal_lm import CausalLM
from kvtransfer.cuda_runtime import CudaRuntime
from kvtransfer.device_kernels import CudaBlockKernels
from kvtransfer.device_pool import DevicePoolMemory
from kvtransfer.device_runtime import DeviceError
from kvtransfer.pool import KVPool
from kvtransfer.pool_memory import KVPoolMemory
from wire.errors import ErrorCode, SpliceError
from wire.kv_layout import KVLayout
from worker.settings import DEFAULT_KV_BYTES, WorkerSettings

if TYPE_CHECKING:
    import torch

    from engine.models.device_decoder import DeviceDecoder


@dataclass(frozen=True, slots=True)
class PoolPlace:
    """One pool, as a hand-off sees it and as a model computes in it."""

    pool: KVPool
    cache: KVMemory
    written: int | None = None
    """An event behind every write the engine tells of: it does so when the device has made them, so the event is done.
    None where blocks are written by the host."""

    def check_device(self) -> None:
        """Raises DeviceLost where the device has failed, in whatever work; does not wait for it."""
        if isinstance(self.pool, DevicePoolMemory) and self.written is not None:
            try:
                self.pool.runtime.is_done(self.written)
            except DeviceError as error:
                raise DeviceLost(f"the GPU is lost to this process: {error}") from error


def pool_on_host(settings: WorkerSettings, layout: KVLayout, incarnation: int, *, beside_bytes: int) -> PoolPlace:
    """`beside_bytes`: see `KVPoolMemory.create`. Raises SpliceError (bad_setting) where the memory cannot be had."""
    count = _num_blocks(settings, layout, lambda: DEFAULT_KV_BYTES)
    memory = KVPoolMemory.create(layout, count, incarnation, beside_bytes=beside_bytes)
    return PoolPlace(memory, KVCache.over(layout, memory.data()))


def pool_on_gpu(settings: WorkerSettings, index: int, model: CausalLM, layout: KVLayout, incarnation: int) -> PoolPlace:
    """Raises SpliceError: bad_setting where the memory cannot be had, missing_part for what a GPU needs and lacks."""
    from engine.device.kv_memory import DeviceKVCache  # noqa: PLC0415 (torch: seconds, which workers on CPUs do not spend)
    from engine.ops.cuda.library import INSTALLED  # noqa: PLC0415 (torch)

    decoder: DeviceDecoder = model  # type: ignore[assignment]  # what is loaded for a GPU
    count = _num_blocks(
        settings,
        layout,
        lambda: decoder.kv_bytes(settings.block_size, settings.max_num_batched_tokens, settings.gpu_memory_utilization),
    )
    spans = layout.num_layers * layout.planes * layout.num_kv_heads
    runtime = CudaRuntime(index)
    pool = DevicePoolMemory(layout, count, incarnation, runtime, CudaBlockKernels(INSTALLED, spans))
    written = runtime.new_event()
    runtime.record(written, runtime.new_stream())
    return PoolPlace(pool, DeviceKVCache(layout, blocks_of(pool, index)), written)


def blocks_of(pool: DevicePoolMemory, index: int) -> torch.Tensor:
    """The pool's memory as the engine's kernels see it: uint8 `[num_blocks, block_bytes]`."""
    import torch  # noqa: PLC0415

    return torch.as_tensor(pool, device=torch.device("cuda", index))


def _num_blocks(settings: WorkerSettings, layout: KVLayout, spare_bytes: Callable[[], int]) -> int:
    """As many as were asked for, else as fit. Raises SpliceError (bad_setting) where that is not enough."""
    if settings.num_kv_blocks is not None:
        return settings.num_kv_blocks
    num_bytes = spare_bytes() if settings.kv_cache_bytes is None else settings.kv_cache_bytes
    found = num_bytes // layout.block_bytes
    if found < 2:
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            f"{num_bytes} bytes hold {found} KV blocks of {layout.block_bytes} bytes; "
            "at least 2 are needed: raise --kv-cache-memory",
            param="kv_cache_bytes",
        )
    return found
