"""What peers may not do to memory that is shared with them."""

from __future__ import annotations

import fcntl

# linux/fcntl.h, since 5.1: no new writable mapping can be made from any descriptor of the file.
_F_SEAL_FUTURE_WRITE = 0x0010


def seal_size(fd: int) -> None:
    """Fixes the size, so that no peer's mapping can fault, and forbids peers to map it writable where Linux can."""
    fixed = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fixed | _F_SEAL_FUTURE_WRITE)
    except OSError:  # Linux < 5.1 knows no such seal; the peers still map read-only
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fixed)
