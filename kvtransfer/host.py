"""Which host a process runs on, as far as shared memory is concerned."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

_NAMESPACES = ("user", "net")


def host_id() -> str:
    """Boot id and namespaces, hashed to 32 hexadecimal digits; equal ids mean that descriptors can be passed.

    Two containers on one machine differ in their network namespace, and so cannot reach each other's sockets.
    """
    parts = [Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()]
    parts += [os.readlink(f"/proc/self/ns/{name}") for name in _NAMESPACES]
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


def ipc_namespace() -> str:
    """Of this process. Descriptors pass between any two; CUDA opens memory of others only within its own."""
    return os.readlink("/proc/self/ns/ipc")
