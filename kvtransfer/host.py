"""Which host a process runs on, as far as descriptors, process ids and CUDA's mappings are concerned."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def host_id() -> str:
    """Boot id and namespaces, hashed to 32 hexadecimal digits; equal ids mean that descriptors can be passed.

    Two containers on one machine differ in their network namespace, and so cannot reach each other's sockets.
    """
    return _hashed("user", "net")


def pid_space() -> str:
    """The same of what process ids depend on; equal ids mean that a pid names the same process.

    Containers may share all that `host_id` asks for, and count their processes each from 1.
    """
    return _hashed("pid")


def ipc_namespace() -> str:
    """Of this process. Descriptors pass between any two; CUDA opens memory of others only within its own."""
    return os.readlink("/proc/self/ns/ipc")


def _hashed(*namespaces: str) -> str:
    parts = [Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()]
    parts += [os.readlink(f"/proc/self/ns/{name}") for name in namespaces]
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
