"""Settings of a command, turned into those of the parts it starts."""

from __future__ import annotations

import os
from typing import Any, Literal, cast

from engine.ops.cpu_isa import CpuIsa
from kvtransfer.push_choice import KvPush
from router.settings import RouterSettings
from splice.models import find_model
from splice.settings.commands import RouterCommandSettings, ServeSettings, WorkerCommandSettings
from splice.settings.environment import cache_home
from splice.settings.groups import GPU_TRANSPORTS, TRANSPORTS, EngineSettings, ModelSettings
from wire.errors import ErrorCode, SpliceError
from wire.worker_record import Role
from worker.settings import WorkerSettings

_Dtype = Literal["auto", "float32", "bfloat16"]
_KVDtype = Literal["auto", "float32", "bfloat16", "int8", "fp8_e4m3"]
_Activations = Literal["auto", "int8", "bfloat16", "float32"]
_Quantization = Literal["auto", "fp8"]


def worker_settings(settings: WorkerCommandSettings) -> WorkerSettings:
    """For one worker as a plain process. Raises SpliceError when the model is not there."""
    return _worker(
        settings,
        settings,
        num_threads=settings.num_threads or usable_cores(),
        role=cast(Role, settings.role),
        host=settings.host,
        port=settings.port,
        etcd_endpoints=settings.etcd_endpoints,
        cluster=settings.cluster,
        worker_id=settings.worker_id,
        registration_ttl_s=settings.registration_ttl,
        drain_timeout_s=settings.drain_timeout,
        faults=settings.fault,
        nice=settings.nice,
    )


def pool_settings(settings: ServeSettings, role: Role, host: str, etcd_endpoints: tuple[str, ...]) -> WorkerSettings:
    """For every worker of one pool; each draws its own name and port."""
    return _worker(
        settings,
        settings,
        num_threads=num_threads(settings),
        nice=settings.prefill_nice if role == "prefill" else 0,
        role=role,
        host=host,
        etcd_endpoints=etcd_endpoints,
        cluster=settings.cluster,
    )


def num_threads(settings: ServeSettings) -> int:
    """Of each worker: what was asked for, else an even share of this machine, where its workers all stand. On an
    existing Ray cluster nobody knows yet who stands where: one each, as Ray is told."""
    if settings.num_threads is not None:
        return settings.num_threads
    if settings.ray_address is not None:
        return 1
    return max(1, usable_cores() // (settings.prefill + settings.decode))


def usable_cores() -> int:
    """Those this process may run on."""
    return len(os.sched_getaffinity(0))


def router_settings(settings: RouterCommandSettings) -> RouterSettings:
    return RouterSettings(
        host=settings.host,
        http_port=settings.port,
        grpc_port=settings.grpc_port,
        etcd_endpoints=settings.etcd_endpoints,
        cluster=settings.cluster,
        default_seed=settings.seed,
        api_keys=(settings.api_key,) if settings.api_key else (),
        no_worker_grace_s=settings.no_worker_grace,
        max_local_prefill_tokens=settings.max_local_prefill_tokens,
    )


def _worker(model: ModelSettings, engine: EngineSettings, **rest: Any) -> WorkerSettings:
    _refuse_idle(engine)
    found = find_model(model.model)
    return WorkerSettings(
        model_path=str(found.path),
        served_model_name=model.served_model_name or found.served_name,
        dtype=cast(_Dtype, model.dtype),
        activations=cast(_Activations, model.activations),
        quantization=cast(_Quantization, model.quantization),
        kv_cache_dtype=cast(_KVDtype, engine.kv_cache_dtype),
        block_size=engine.block_size,
        num_kv_blocks=engine.num_kv_blocks,
        kv_cache_bytes=engine.kv_cache_memory,
        device=engine.device,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        enforce_eager=engine.enforce_eager,
        tactics_folder=str(cache_home() / "tactics") if engine.autotune else None,
        deterministic=engine.deterministic,
        async_scheduling=engine.async_scheduling,
        swap_space_bytes=engine.swap_space or 0,
        num_host_blocks=engine.num_host_blocks,
        max_model_len=model.max_model_len,
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_step_ms=engine.max_step_ms,
        max_mixed_step_ms=engine.max_mixed_step_ms,
        enable_prefix_caching=engine.enable_prefix_caching,
        kv_transports=engine.kv_transport or (TRANSPORTS if engine.device == "cpu" else GPU_TRANSPORTS),
        kv_push=cast(KvPush, engine.kv_push),
        lease_ttl_s=engine.lease_ttl,
        cpu_isa=cast(CpuIsa, engine.cpu_isa),
        **rest,
    )


def _refuse_idle(engine: EngineSettings) -> None:
    """Settings of GPU kernels that would change nothing. Raises SpliceError (bad_setting)."""
    if engine.device == "cpu":
        for param, is_set in (("autotune", engine.autotune), ("enforce_eager", engine.enforce_eager)):
            if is_set:
                raise SpliceError(
                    ErrorCode.BAD_SETTING,
                    f"--{param.replace('_', '-')} concerns GPUs, and steps are computed on the CPU: drop it, or add "
                    "--device cuda",
                    param=param,
                )
    if not engine.deterministic and not engine.autotune:
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            "--no-deterministic widens the choice among measured GPU kernels, and nothing is measured: add --autotune, "
            "or drop it",
            param="deterministic",
        )
