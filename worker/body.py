"""What a worker is before its first connection: a model, its memory, and the engine that owns both."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

from engine.blocks.block_pool import BlockPool
from engine.config import EngineConfig
from engine.engine import Engine
from engine.gpu_place import GpuPlace
from engine.loader import LoadedModel, OpenedModel, open_model
from engine.ops.cpu_isa import choose_cpu_isa
from kvtransfer.faults import DEVICE_LOST, FaultPlan
from wire.errors import ErrorCode, SpliceError
from wire.kv_layout import KVLayout
from wire.worker_record import draw_incarnation
from worker.failing_model import FailingModel
from worker.pool_place import PoolPlace, pool_on_gpu, pool_on_host
from worker.settings import WorkerSettings


@dataclass(frozen=True, slots=True)
class Body:
    loaded: LoadedModel
    layout: KVLayout
    place: PoolPlace
    engine: Engine
    incarnation: int


def build_body(settings: WorkerSettings) -> Body:
    choose_cpu_isa(settings.cpu_isa)
    opened = open_model(
        settings.path,
        served_name=settings.served_model_name,
        dtype=settings.dtype,
        activations=settings.activations,
        quantization=settings.quantization,
        max_model_len=settings.max_model_len,
        num_threads=settings.num_threads,
        gpu=_gpu_place(settings),
    )
    layout = opened.kv_layout(settings.block_size, settings.kv_cache_dtype)
    incarnation = draw_incarnation()
    with ExitStack() as undo:
        if settings.gpu_index is None:
            loaded, place = _with_host_pool(settings, opened, layout, incarnation)
        else:
            loaded = opened.load()
            place = pool_on_gpu(settings, settings.gpu_index, loaded.model, layout, incarnation)
        undo.callback(place.pool.close)
        engine = _engine(settings, loaded, layout, place)
        undo.pop_all()
    return Body(loaded, layout, place, engine, incarnation)


def _with_host_pool(
    settings: WorkerSettings, opened: OpenedModel, layout: KVLayout, incarnation: int
) -> tuple[LoadedModel, PoolPlace]:
    """Memory for the pool comes while weights are read: each takes about as long, and neither needs the other."""
    with ThreadPoolExecutor(1, thread_name_prefix="kv-pool") as aside:
        reserved = aside.submit(pool_on_host, settings, layout, incarnation, beside_bytes=opened.weight_bytes)
        try:
            loaded = opened.load()
        except BaseException:
            if reserved.exception() is None:
                reserved.result().pool.close()
            raise
    return loaded, reserved.result()


def _engine(settings: WorkerSettings, loaded: LoadedModel, layout: KVLayout, place: PoolPlace) -> Engine:
    config = EngineConfig(
        num_blocks=place.pool.num_blocks,
        num_host_blocks=_num_host_blocks(settings, layout),
        block_tokens=settings.block_size,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        max_step_ms=settings.max_step_ms,
        max_mixed_step_ms=settings.max_mixed_step_ms,
        max_model_len=loaded.card.max_model_len,
        enable_prefix_caching=settings.enable_prefix_caching,
        async_scheduling=settings.async_scheduling,
        eos_token_ids=loaded.card.eos_token_ids,
    )
    pool = BlockPool(config.num_blocks, place.pool, config.num_host_blocks, config.host_min_tokens)
    faults = FaultPlan.parse(settings.faults)
    model = FailingModel(loaded.model, faults) if faults.names(DEVICE_LOST) else loaded.model
    engine = Engine(model, place.cache, config, pool)
    engine.warm_up()
    return engine


def _gpu_place(settings: WorkerSettings) -> GpuPlace | None:
    if settings.gpu_index is None:
        return None
    return GpuPlace(
        index=settings.gpu_index,
        max_num_seqs=settings.max_num_seqs,
        enforce_eager=settings.enforce_eager,
        tactics=Path(settings.tactics_folder) if settings.tactics_folder is not None else None,
        is_deterministic=settings.deterministic,
    )


def _num_host_blocks(settings: WorkerSettings, layout: KVLayout) -> int:
    num_blocks = settings.num_host_blocks
    if num_blocks is None:
        num_blocks = settings.swap_space_bytes // layout.block_bytes
        if settings.swap_space_bytes and not num_blocks:
            raise SpliceError(
                ErrorCode.BAD_SETTING,
                f"{settings.swap_space_bytes} bytes hold no KV block of {layout.block_bytes} bytes: raise --swap-space "
                "or leave it away",
                param="swap_space_bytes",
            )
    available = psutil.virtual_memory().available
    if num_blocks * layout.block_bytes > available:
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            f"{num_blocks} host blocks take {num_blocks * layout.block_bytes} bytes and {available} are available: "
            "lower --swap-space or --num-host-blocks",
            param="swap_space_bytes",
        )
    return num_blocks
