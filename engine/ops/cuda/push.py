"""Writing keys and values into the local cache and, at the same stroke, into the one that will decode."""

from __future__ import annotations

from ctypes import Structure, c_void_p
from dataclasses import dataclass

import torch

from engine.ops.cuda.cache import rope_arguments
from engine.ops.cuda.library import Library
from engine.ops.cuda.structs import Rope
from engine.ops.cuda.tensors import require
from engine.ops.head_norms import HeadNorms


class Push(Structure):
    """`splice_cuda_push`."""

    _fields_ = (("rope", Rope), *((name, c_void_p) for name in ("peers", "peer_slots")))


@dataclass(frozen=True, slots=True)
class PeerRows:
    """Where rows go besides, int64 `[num_tokens]` each."""

    caches: torch.Tensor
    """Addresses of caches of the local one's form, mapped here from another process; 0: the row stays."""
    slots: torch.Tensor
    """As `slots`, in that cache; negative: the row stays."""


def rope_store_and_push(
    library: Library,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    cos_sin: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: int,
    slots: torch.Tensor,
    peers: PeerRows,
    norms: HeadNorms | None = None,
) -> torch.Tensor:
    """`cache.rope_and_store`, with the same bits, and rows of keys and values a second time at `peers`.

    A row with a negative slot is stored nowhere. Peers may read what was pushed once an event behind this is done.
    """
    arguments, out = rope_arguments(library, q, k, v, positions, cos_sin, kv_cache, layer, slots, norms)
    rows, device = (q.shape[0],), library.device_type
    caches = require("peers.caches", peers.caches, torch.int64, rows, device)
    places = require("peers.slots", peers.slots, torch.int64, rows, device)
    library.call("rope_push", Push(arguments, caches, places))
    return out
