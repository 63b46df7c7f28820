"""An abstract Unix socket on which peers of this user and host show a capability: no file is left by a kill."""

from __future__ import annotations

import os
import secrets
import socket
import struct
from collections.abc import Container

from kvtransfer.transport import CAPABILITY_BYTES

_BACKLOG = 64
_SHOW_TIMEOUT_S = 1.0


def listening() -> tuple[str, socket.socket]:
    """(its name without the leading zero, the listener)"""
    name = f"splice-kv-{secrets.token_hex(12)}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind("\0" + name)
    listener.listen(_BACKLOG)
    return name, listener


def admitted(peer: socket.socket, capabilities: Container[bytes]) -> bytes:
    """The capability shown, empty if it is none of these or another user's; raises OSError if the peer dawdles."""
    peer.settimeout(_SHOW_TIMEOUT_S)
    _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    shown = _receive_exactly(peer, CAPABILITY_BYTES)
    return shown if uid == os.getuid() and shown in capabilities else b""


def _receive_exactly(peer: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        part = peer.recv(size - len(received))
        if not part:
            return b""
        received += part
    return received
