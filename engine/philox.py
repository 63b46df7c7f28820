"""Uniform numbers that depend on what they are for and on nothing drawn before."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class DrawPurpose(IntEnum):
    """Why a number is drawn; part of the key, so that two uses at one position never share a number."""

    TOKEN = 0


def uniform(seed: int, choice: int, position: int, purpose: DrawPurpose) -> float:
    """A number in [0, 1) with 53 random bits.

    Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with key (`seed`, `choice`)
    and counter (0, `position`, `purpose`, 0), as numpy counts: its first output belongs to the counter plus one.
    """
    key = np.array([seed & 0xFFFF_FFFF_FFFF_FFFF, choice], dtype=np.uint64)
    counter = np.array([0, position, purpose, 0], dtype=np.uint64)
    return float(int(np.random.Philox(key=key, counter=counter).random_raw()) >> 11) * 2.0**-53
