"""Everything a worker process is told at start."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from engine.ops.cpu_isa import CpuIsa
from kvtransfer.push_choice import KvPush
from wire.worker_record import Role

DEFAULT_KV_BYTES = 512 << 20


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one worker; built once by the command line or the launcher, never read from the environment here."""

    role: Role
    model_path: str
    served_model_name: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    activations: Literal["auto", "int8", "bfloat16", "float32"] = "auto"
    """What weights are multiplied with; int8 concerns quantised ones."""
    quantization: Literal["auto", "fp8"] = "auto"
    """What a GPU makes of matrices in bfloat16: nothing else, or FP8."""
    kv_cache_dtype: Literal["auto", "float32", "bfloat16", "int8", "fp8_e4m3"] = "auto"
    """`auto`: bfloat16, but float32 for a model that is float32 itself."""
    block_size: int = 32
    num_kv_blocks: int | None = None
    """Size of the KV pool in blocks; wins over `kv_cache_bytes`."""
    kv_cache_bytes: int | None = None
    """None: `DEFAULT_KV_BYTES` in memory of the CPU, on a GPU what `gpu_memory_utilization` leaves."""
    device: str = "cpu"
    """`cpu`, `cuda` or `cuda:N`."""
    gpu_memory_utilization: float = 0.9
    """Share of the GPU's memory that this worker may take."""
    enforce_eager: bool = False
    """On a GPU: no graphs are captured."""
    tactics_folder: str | None = None
    """Where measured choices among GPU kernels are kept; None: nothing is measured."""
    deterministic: bool = True
    """Of measured choices: only such as give a row the same bits in any company."""
    async_scheduling: bool = True
    """See `EngineConfig`."""
    swap_space_bytes: int = 0
    """Host memory that keeps what is evicted from the KV pool; as many whole blocks as fit."""
    num_host_blocks: int | None = None
    """The same in blocks; wins over `swap_space_bytes`."""
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    max_step_ms: float = 250.0
    max_mixed_step_ms: float = 180.0
    """See `EngineConfig`, as for the three above."""
    enable_prefix_caching: bool = True
    host: str = "127.0.0.1"
    port: int = 0
    """0 takes a free port; the registration says which."""
    etcd_endpoints: tuple[str, ...] = ()
    """Empty: the worker registers nowhere and is reached by its address alone."""
    cluster: str = "default"
    worker_id: str | None = None
    """None draws one from the role and the incarnation."""
    num_threads: int = 1
    """Threads that share one engine step."""
    nice: int = 0
    """How far these threads give way to others on this machine, in Linux's levels."""
    cpu_isa: CpuIsa = "auto"
    """Of the native kernels; refused where the machine lacks it."""
    kv_transports: tuple[str, ...] = ("shm", "ucx", "tcp")
    """Best first; a prefill worker offers them, a decode worker accepts them."""
    kv_push: KvPush = "auto"
    """Whether prefill stores KV in decode's memory while it computes it; `auto`: where both are on GPUs of one host and
    measuring says that it pays."""
    lease_ttl_s: float = 10.0
    """How long announced KV stays readable without a renewal."""
    registration_ttl_s: int = 5
    drain_timeout_s: float = 30.0
    faults: tuple[str, ...] = ()
    """Named fault points armed at start; refused unless `host` is a loopback address."""

    @property
    def gpu_index(self) -> int | None:
        """Which GPU; None for a worker that computes on the CPU."""
        return None if self.device == "cpu" else int(self.device.partition(":")[2] or 0)

    @property
    def path(self) -> Path:
        return Path(self.model_path).expanduser()
