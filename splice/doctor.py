"""Examines a machine without changing it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from kvtransfer import cuda_runtime, nccl_library, ucx_library
from membership.server import find_etcd
from splice.cluster.checks import check_shm
from splice.finding import Finding
from splice.gpu_probe import probe_gpu
from splice.gpu_state import gpu_findings
from splice.models import PUBLISHED, find_model
from wire.errors import SpliceError

RAM_BYTES = 4 << 30
_ISA = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd")


def examine() -> list[Finding]:
    """One finding a part; never raises for what is missing."""
    return [
        _python(),
        _package("torch", "pip install torch"),
        _package("ray", "pip install ray"),
        _tried("etcd", lambda: str(find_etcd())),
        _ucx(),
        *examine_transports(),
        _native("engine"),
        _kernels(),
        _native("kvtransfer"),
        _tried("shared memory", check_shm),
        _memory(),
        _processor(),
        *[_model(name) for name in PUBLISHED],
        *gpu_findings(probe_gpu()),
    ]


def examine_transports() -> list[Finding]:
    """The ways KV goes between GPUs, best first; all of them need a driver. Never raises."""
    if reason := cuda_runtime.why_missing():
        return [Finding("KV between GPUs", "optional", "not available", f"{reason}; only pools on a GPU need it")]
    ways = {
        "cuda_ipc": ("between GPUs of this host, mapped", ""),
        "nccl": ("between GPUs of one host or of two, not two pools on one", nccl_library.why_missing()),
        "ucx on GPUs": ("between hosts, from GPU to GPU", ucx_library.why_no_cuda()),
        "shm on GPUs": ("within this host, through shared pinned memory", ""),
    }
    findings = []
    for name, (what, lacking) in ways.items():
        if lacking:
            findings.append(Finding(name, "optional", "not available", f"{lacking}; the next one is taken meanwhile"))
        else:
            findings.append(Finding(name, "ok", f"KV hand-off {what}"))
    return findings


def _python() -> Finding:
    return Finding("Python", "ok", f"{platform.python_version()} at {sys.executable}")


def _package(name: str, remedy: str) -> Finding:
    try:
        return Finding(name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "missing", "not installed", remedy)


def _ucx() -> Finding:
    reason = ucx_library.why_missing()
    if reason:
        return Finding("ucx", "optional", "not available", f"{reason}; KV goes between hosts by tcp meanwhile")
    return Finding("ucx", "ok", "KV hand-off between hosts over RDMA or TCP")


def _native(room: str) -> Finding:
    part = f"{room} native"
    specification = importlib.util.find_spec(f"{room}._native")
    if specification is None:
        return Finding(part, "missing", "not built", "`make build` in a clone, or install the wheel again")
    return Finding(part, "ok", str(specification.origin))


def _kernels() -> Finding:
    """The path that native kernels take here, and those `--cpu-isa` can choose instead."""
    part = "CPU kernels"
    try:
        best, *others = importlib.import_module("engine._native").supported_isas()
    except ImportError as error:
        return Finding(part, "missing", "none", f"torch's slower operations stand in ({error})")
    return Finding(part, "ok", f"{best} (--cpu-isa: {', '.join([best, *others])})")


def _tried(part: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(part, "ok", check())
    except SpliceError as error:
        return Finding(part, "missing", "no", error.message)


def _memory() -> Finding:
    free = psutil.virtual_memory().available
    text = f"{free >> 20} MiB available"
    if free < RAM_BYTES:
        return Finding("memory", "optional", text, "4 GiB make the small model comfortable; lower --kv-cache-memory")
    return Finding("memory", "ok", text)


def _processor() -> Finding:
    cores = len(os.sched_getaffinity(0))
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    flags = next((line.split() for line in lines if line.lower().startswith(("flags", "features"))), [])
    known = [flag for flag in _ISA if flag in flags]
    return Finding("processor", "ok", f"{platform.machine()}, {cores} cores, {' '.join(known) or 'no known extension'}")


def _model(name: str) -> Finding:
    try:
        return Finding(f"model {name}", "ok", str(find_model(name).path))
    except SpliceError as error:
        return Finding(f"model {name}", "optional", "not here", error.message)
