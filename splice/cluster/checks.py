"""What must hold before anything is started. Each check raises SpliceError with the remedy; none changes anything."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import psutil

from membership.server import find_etcd
from splice.gpu_probe import probe_gpu
from splice.gpu_state import gpu_findings
from splice.models import find_model
from splice.settings.commands import ServeSettings
from wire.errors import ErrorCode, SpliceError
from worker.settings import DEFAULT_KV_BYTES

SHM_BYTES = 128 << 20
"""Ray's object store keeps its segments there; the KV pools do not."""
BASE_BYTES_PER_WORKER = 600 << 20
CONNECT_S = 3.0


def check_serve(settings: ServeSettings) -> list[str]:
    """All checks of `splice serve`; returns one line for each that passed."""
    done = [check_model(settings.model)]
    if settings.quantization == "fp8" and settings.device == "cpu":
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            "quantization is fp8, but a CPU multiplies no FP8: use --device cuda, or leave it away",
            param="quantization",
        )
    for name, port in (("port", settings.port), ("grpc_port", settings.grpc_port)):
        done.append(check_port(name, settings.host, port))
    if settings.port and settings.port == settings.grpc_port:
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            f"HTTP and gRPC cannot share port {settings.port}; change --grpc-port",
            param="grpc_port",
        )
    if settings.etcd_endpoints:
        done.append(check_reachable("etcd_endpoints", settings.etcd_endpoints))
    else:
        done.append(f"etcd       {find_etcd()}")
    if settings.ray_address is None:
        done.append(check_shm())
        done.append(check_memory(settings))
        if settings.device != "cpu":
            done.append(check_gpu(settings.device))
    else:
        done.append(check_reachable("ray_address", (settings.ray_address,)))
    return done


def check_model(model: str) -> str:
    return f"model      {find_model(model).path}"


def check_model_files(settings: ServeSettings) -> str:
    """Whether the model's headers are sound and describe something that can be computed: see `engine.loader`."""
    from engine.loader import check_model as check_headers  # noqa: PLC0415 (numpy, which other commands do not need)

    spec = check_headers(find_model(settings.model).path, settings.max_model_len)
    return f"layers     {spec.num_layers} of {spec.architecture}, {spec.max_positions} tokens of context"


def check_port(name: str, host: str, port: int) -> str:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SpliceError(
                ErrorCode.BAD_SETTING,
                f"cannot listen on {host}:{port} ({error.strerror}); choose another --{name.replace('_', '-')}, "
                "or 0 for a free one",
                param=name,
            ) from None
    return f"{name.replace('_', ' '):<10} {host}:{port or '(free)'}"


def check_reachable(name: str, addresses: tuple[str, ...]) -> str:
    """One of several is enough."""
    reasons = []
    for address in addresses:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
        except (OSError, ValueError) as error:
            reasons.append(f"{address}: {error}")
        else:
            return f"{name.split('_', maxsplit=1)[0]:<10} {address} answers"
    raise SpliceError(
        ErrorCode.BAD_SETTING,
        f"none of the addresses answers ({'; '.join(reasons)}); start it, correct the address, "
        "or leave the setting out to have one started here",
        param=name,
    )


def check_shm(folder: Path = Path("/dev/shm"), needed: int = SHM_BYTES) -> str:  # noqa: S108 (only measured)
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    if free < needed:
        raise SpliceError(
            ErrorCode.MISSING_PART,
            f"{folder} has {free >> 20} MiB free, {needed >> 20} are needed; enlarge it "
            f"(`mount -o remount,size=1G {folder}`, in a container `--shm-size=1g`)",
            param="shm",
        )
    return f"{folder!s:<10} {free >> 20} MiB free"


def check_memory(settings: ServeSettings) -> str:
    """A rough floor: the KV pools and what a worker takes beside its weights."""
    workers = settings.prefill + settings.decode
    pool = _pool_bytes(settings)
    swap = 0 if settings.num_host_blocks is not None else settings.swap_space or 0
    needed, free = workers * (pool + swap + BASE_BYTES_PER_WORKER), psutil.virtual_memory().available
    if needed > free:
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            f"{workers} workers with KV pools of {pool >> 20} MiB and {swap >> 20} MiB of swap space need about "
            f"{needed >> 20} MiB, {free >> 20} are free; "
            "lower --kv-cache-memory, --swap-space, --prefill or --decode",
            param="kv_cache_memory",
        )
    return f"memory     {needed >> 20} of {free >> 20} MiB"


def check_gpu(device: str) -> str:
    """Whether workers that start here can compute on this machine's GPU, by all that can be seen without one."""
    findings = [each for each in gpu_findings(probe_gpu()) if each.part != "nvcc"]
    lacking = next((each for each in findings if each.verdict != "ok"), None)
    if lacking is not None:
        raise SpliceError(
            ErrorCode.MISSING_PART,
            f"--device {device} cannot be used here: {lacking.part}: {lacking.found}; {lacking.remedy}, or use "
            "--device cpu",
            param="device",
        )
    return f"GPU        {findings[0].found}"


def _pool_bytes(settings: ServeSettings) -> int:
    """Of memory of the CPU, where it is known beforehand."""
    if settings.num_kv_blocks is not None or settings.device != "cpu":
        return 0
    return DEFAULT_KV_BYTES if settings.kv_cache_memory is None else settings.kv_cache_memory
