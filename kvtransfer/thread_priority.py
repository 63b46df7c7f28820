"""Who gives way where more threads want to run than there are cores."""

from __future__ import annotations

import os
import threading

from wire.errors import ErrorCode, SpliceError

LOWEST = 19


def give_way(nice: int) -> None:
    """Lowers the priority of the calling thread, and of those it starts from now on, by `nice` of Linux's levels.

    For good: raising it takes a privilege. A thread that nobody competes with runs no slower. Raises SpliceError
    (bad_setting) for another number than 0 to 19.
    """
    if not 0 <= nice <= LOWEST:
        raise SpliceError(ErrorCode.BAD_SETTING, f"nice is {nice}, expected 0 to {LOWEST}", param="nice")
    if nice:
        thread = threading.get_native_id()  # to Linux, each thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, thread, min(LOWEST, os.getpriority(os.PRIO_PROCESS, thread) + nice))
