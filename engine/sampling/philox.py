"""Uniform numbers that depend on what they are for and on nothing drawn before."""

from __future__ import annotations

from enum import IntEnum

from engine import _sampling


class DrawPurpose(IntEnum):
    """Why a number is drawn; part of the key, so that two uses at one position never share a number."""

    TOKEN = 0


def uniform(seed: int, choice: int, position: int, purpose: DrawPurpose) -> float:
    """A number in [0, 1) with 53 random bits.

    Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with key (`seed`, `choice`)
    and counter (1, `position`, `purpose`, 0); the upper bits of its first word.
    """
    return _sampling.uniform(seed & 0xFFFF_FFFF_FFFF_FFFF, choice, position, purpose)
