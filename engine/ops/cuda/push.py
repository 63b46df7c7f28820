"""Writing keys and values, or latents, into the local cache and, at the same stroke, into the one that will decode."""

from __future__ import annotations

from ctypes import Structure, c_void_p

import torch

from engine.ops.cuda.cache import rope_arguments
from engine.ops.cuda.latent import LatentStore, store_arguments
from engine.ops.cuda.library import Library
from engine.ops.cuda.structs import Rope
from engine.ops.cuda.tensors import require
from engine.ops.head_norms import HeadNorms
from engine.ops.latent_norm import LatentNorm
from engine.steps.peer_rows import PeerRows


class Push(Structure):
    """`splice_cuda_push`."""

    _fields_ = (("rope", Rope), *((name, c_void_p) for name in ("peers", "peer_slots")))


class LatentPush(Structure):
    """`splice_cuda_latent_push`."""

    _fields_ = (("store", LatentStore), *((name, c_void_p) for name in ("peers", "peer_slots")))


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
    library.call("rope_push", Push(arguments, *_places(library, peers, q.shape[0])))
    return out


def store_latents_and_push(
    library: Library,
    q: torch.Tensor,
    latents: torch.Tensor,
    keys: torch.Tensor,
    positions: torch.Tensor,
    cos_sin: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: int,
    slots: torch.Tensor,
    peers: PeerRows,
    norm: LatentNorm | None = None,
) -> torch.Tensor:
    """`latent.store_latents`, with the same bits, and rows of [latent | key] a second time at `peers`, as above."""
    arguments = store_arguments(library, q, latents, keys, positions, cos_sin, kv_cache, layer, slots, norm)
    library.call("push_latents", LatentPush(arguments, *_places(library, peers, q.shape[0])))
    return q


def _places(library: Library, peers: PeerRows, tokens: int) -> tuple[int, int]:
    """Addresses of the two arrays. Raises SpliceError."""
    device = library.device_type
    caches = require("peers.caches", peers.caches, torch.int64, (tokens,), device)
    return caches, require("peers.slots", peers.slots, torch.int64, (tokens,), device)
