"""Memory that was freed and not yet returned to the system."""

from __future__ import annotations

import ctypes


def return_freed() -> None:
    """Gives back what something large and short-lived, such as a tokenizer being built, left in the C library's heap.

    Of no effect where the C library is not glibc.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
