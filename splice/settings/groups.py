"""Settings by what they speak about; commands are composed of these. Names are those users of vLLM already type."""

from __future__ import annotations

from dataclasses import dataclass

from engine.ops.cpu_isa import CPU_ISAS
from splice.settings import parse
from splice.settings.setting import setting

TRANSPORTS = ("shm", "ucx", "tcp")
GPU_TRANSPORTS = ("cuda_ipc", "nccl", "ucx", "shm", "tcp")
DTYPES = ("auto", "float32", "bfloat16")
MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which model, and how it is computed."""

    model: str = setting(
        "smollm2", parse.text, "A name `splice pull` knows, a GGUF file or a Hugging Face directory.", group="Model"
    )
    served_model_name: str | None = setting(
        None, parse.text, "The name clients use. Default: the model's own.", group="Model"
    )
    dtype: str = setting(
        "auto",
        parse.choice(*DTYPES),
        "Of what lies between products: auto (float32: native kernels), float32, or bfloat16 (torch; slow).",
        group="Model",
    )
    activations: str = setting(
        "auto",
        parse.choice("auto", "int8", "bfloat16", "float32", aliases={"bf16": "bfloat16"}),
        "What weights are multiplied with: auto, int8 (quantised ones; fast), bfloat16, or float32.",
        group="Model",
    )
    quantization: str = setting(
        "auto",
        parse.choice("auto", "fp8"),
        "Of matrices: auto (as files have them), or fp8, on a GPU: those in bfloat16 become FP8, a scale a row.",
        group="Model",
    )
    max_model_len: int | None = setting(
        None, parse.integer(1), "Longest prompt plus answer, in tokens. Default: the model's.", group="Model"
    )


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How one worker schedules and what memory it takes."""

    block_size: int = setting(32, parse.choice_of_ints(16, 32, 64), "Tokens in one KV block.", group="Engine")
    num_kv_blocks: int | None = setting(
        None, parse.integer(2), "KV pool of each worker in blocks; wins over --kv-cache-memory.", group="Engine"
    )
    kv_cache_memory: int | None = setting(
        None,
        parse.size,
        "KV pool of each worker in bytes, such as 512M or 2G. Default: 512M; on a GPU what --gpu-memory-utilization "
        "leaves.",
        group="Engine",
        metavar="SIZE",
    )
    swap_space: int | None = setting(
        None,
        parse.size,
        "Host memory of each worker for KV blocks evicted from its pool, such as 512M. Default: none.",
        group="Engine",
        metavar="SIZE",
    )
    num_host_blocks: int | None = setting(
        None, parse.integer(0), "The same in blocks; wins over --swap-space.", group="Engine"
    )
    kv_cache_dtype: str = setting(
        "auto",
        parse.choice(*DTYPES, "int8", "fp8_e4m3", aliases={"fp8": "fp8_e4m3"}),
        "Type of the KV cache: auto (bfloat16; float32 for a model in float32), float32, bfloat16; int8 or fp8 with a "
        "scale a token and head.",
        group="Engine",
    )
    max_num_seqs: int = setting(64, parse.integer(1, 4096), "Most requests computed in one step.", group="Engine")
    max_num_batched_tokens: int = setting(
        512, parse.integer(1), "Most tokens computed in one step; longer prompts are chunked.", group="Engine"
    )
    max_step_ms: float = setting(
        250.0,
        parse.number(1, 3_600_000),
        "Most milliseconds one step is predicted to take; longer prompts are chunked, to one block at least.",
        group="Engine",
    )
    max_mixed_step_ms: float = setting(
        180.0,
        parse.number(1, 3_600_000),
        "The same beside requests that get a token from the step: about the longest pause of an answer (ITL).",
        group="Engine",
    )
    enable_prefix_caching: bool = setting(
        True, parse.switch, "Reuse KV blocks of equal prompt beginnings.", group="Engine", is_switch=True
    )
    num_threads: int | None = setting(
        None,
        parse.integer(1, 1024),
        "CPU threads of one worker's step. Default: the cores, divided by the workers that `splice serve` starts here; "
        "1 on an existing Ray cluster.",
        group="Engine",
    )
    cpu_isa: str = setting(
        "auto",
        parse.choice(*CPU_ISAS),
        "Instruction set of the native kernels: auto (the best there is), or a lower one to compare with.",
        group="Engine",
    )
    device: str = setting(
        "cpu",
        parse.device,
        "Where steps are computed: cpu, or cuda or cuda:N, in bfloat16 (new: its kernels are proven in an emulator and "
        "have not yet run on a GPU).",
        group="GPU",
    )
    gpu_memory_utilization: float = setting(
        0.9, parse.number(0.01, 1.0), "Share of a GPU's memory that one worker may take.", group="GPU"
    )
    num_gpus: float = setting(
        1.0,
        parse.number(0.01, 16),
        "What a worker asks of an existing Ray cluster; 0.5 puts two on one GPU.",
        group="GPU",
    )
    enforce_eager: bool = setting(
        False, parse.switch, "Launch every step anew and capture no CUDA graphs.", group="GPU", is_switch=True
    )
    autotune: bool = setting(
        False,
        parse.switch,
        "Measure at start which kernels are fastest for the model's shapes, and keep what was found.",
        group="GPU",
        is_switch=True,
    )
    deterministic: bool = setting(
        True,
        parse.switch,
        "Of measured kernels choose such as give a row the same bits in any company. Without, the fastest for each "
        "number of rows.",
        group="GPU",
        is_switch=True,
    )
    async_scheduling: bool = setting(
        True,
        parse.switch,
        "Prepare a step while the GPU computes the one before it.",
        group="GPU",
        is_switch=True,
    )
    kv_transport: tuple[str, ...] | None = setting(
        None,
        parse.words(*TRANSPORTS, *(name for name in GPU_TRANSPORTS if name not in TRANSPORTS)),
        "Ways to hand KV over, best first. Each pair of workers takes the first that both can. Default: "
        f"{','.join(TRANSPORTS)}; between GPUs {','.join(GPU_TRANSPORTS)}.",
        group="KV hand-off",
        metavar="LIST",
    )
    kv_push: str = setting(
        "auto",
        parse.choice("auto", "on", "off"),
        "Whether prefill stores KV in decode's memory as it computes it: auto (between GPUs of one host, where "
        "measuring says that it pays), on, off (decode pulls).",
        group="KV hand-off",
    )
    lease_ttl: float = setting(
        10.0, parse.seconds(1), "Seconds for which computed KV waits for its reader.", group="KV hand-off", metavar="S"
    )


@dataclass(frozen=True, kw_only=True)
class MembershipSettings:
    """How the parts find each other."""

    cluster: str = setting("default", parse.name, "Name of the cluster; one etcd can hold many.", group="Cluster")
    etcd_endpoints: tuple[str, ...] = setting(
        (), parse.endpoints, "Existing etcd, host:port[,host:port]. Default: see the command.", group="Cluster"
    )


@dataclass(frozen=True, kw_only=True)
class FrontSettings:
    """The front door: where clients come in and what they may do."""

    host: str = setting("127.0.0.1", parse.text, "Address to listen on.", group="Front door")
    port: int = setting(8000, parse.integer(0, 65535), "HTTP port; 0 takes a free one.", group="Front door")
    grpc_port: int = setting(8001, parse.integer(0, 65535), "gRPC port; 0 takes a free one.", group="Front door")
    api_key: str | None = setting(
        None, parse.text, "Clients must send this as a bearer token.", group="Front door", secret=True
    )
    seed: int | None = setting(
        None,
        parse.integer(0, (1 << 63) - 1),
        "Seed of requests that name none. Default: a fresh one each, told in the receipt.",
        group="Routing",
    )
    max_local_prefill_tokens: int = setting(
        0,
        parse.integer(0),
        "Prompts with at most this many uncached tokens are prefilled on the decode worker.",
        group="Routing",
    )
    no_worker_grace: float = setting(
        0.0,
        parse.seconds(0),
        "Seconds to wait for a worker of a missing role before the error.",
        group="Routing",
        metavar="S",
    )


@dataclass(frozen=True, kw_only=True)
class PlaceSettings:
    """Where this machine keeps what a running cluster needs."""

    run_dir: str | None = setting(
        None,
        parse.text,
        "Directory for state, logs and the Ray token. Default: a private one per user and cluster.",
        group="Cluster",
        metavar="DIR",
    )
