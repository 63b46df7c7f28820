"""A block whose content is known, and where it is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import msgspec


class Tier(Enum):
    """Which memory a block is in."""

    POOL = "pool"
    """Where the model reads and writes."""
    HOST = "host"
    """Where blocks wait to be copied back."""


class BlockContent(msgspec.Struct, frozen=True):
    """What the KV in a block stands for."""

    name: bytes
    """Chained hash over `parent` and `tokens` (`wire.block_hash.block_hash`)."""
    parent: bytes
    """Name of the block before, or the root."""
    tokens: tuple[int, ...]
    """The leading tokens of the block whose KV is complete."""
    is_full: bool
    """Whether that is the whole block; only then another can follow it."""


@dataclass(slots=True, eq=False)
class CachedBlock:
    """An entry of the prefix cache, which owns it."""

    content: BlockContent
    tier: Tier
    block: int
    """Number within its tier."""
    level: int = 0
    """Higher levels are evicted later."""
