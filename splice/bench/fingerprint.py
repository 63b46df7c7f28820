"""Where a result was measured: enough to say whether two results may be compared."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import msgspec
import psutil

PACKAGES = (
    "splice-serve",
    "torch",
    "numpy",
    "ray",
    "grpcio",
    "uvloop",
    "httptools",
    "msgspec",
    "uvicorn",
    "tokenizers",
)


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """The machine (first group: must be equal in a comparison) and the software (second group: may differ)."""

    cpu_model: str
    cpu_flags: tuple[str, ...]
    """Those that decide which kernels run, sorted."""
    cores: int
    memory_bytes: int

    kernel: str
    governor: str | None
    python: str
    packages: dict[str, str]
    git_commit: str | None
    git_dirty: bool | None
    host_digest: str
    """A hash of the host's name: tells machines apart without naming them."""


def read_environment() -> Environment:
    model, flags = _cpu()
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return Environment(
        cpu_model=model,
        cpu_flags=tuple(sorted(flags & _DECISIVE)),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        kernel=platform.release(),
        governor=_governor(),
        python=platform.python_version(),
        packages={name: version for name in PACKAGES if (version := _version(name)) is not None},
        git_commit=commit,
        git_dirty=None if changes is None else bool(changes),
        host_digest=hashlib.blake2b(platform.node().encode(), digest_size=8).hexdigest(),
    )


def file_digest(path: Path) -> str:
    """32 hexadecimal digits over a model: a file's bytes, or the sorted names and bytes of a directory's files."""
    digest = hashlib.blake2b(digest_size=16)
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    for each in files:
        if each is not path:
            digest.update(str(each.relative_to(path)).encode() + b"\0")
        with each.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


_DECISIVE = frozenset(
    {
        "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16",
        "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve",
    }
)  # fmt: skip


def _cpu() -> tuple[str, frozenset[str]]:
    model, flags = platform.processor() or platform.machine(), frozenset[str]()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return model, flags
    for line in lines:
        name, _, value = line.partition(":")
        match name.strip():
            case "model name":
                model = value.strip()
            case "flags" | "Features":
                return model, frozenset(value.split())
    return model, flags


def _governor() -> str | None:
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*words: str) -> str | None:
    """Of the tree this file lies in; None where it is no git tree, as in an installed wheel."""
    try:
        done = subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
