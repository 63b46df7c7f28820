"""Choices of experts in the order of experts, and the way there and back. Shapes depend on shapes alone."""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_int64, c_void_p
from dataclasses import dataclass

import torch

from engine.ops.cuda.cache import BF16
from engine.ops.cuda.library import Library
from engine.ops.cuda.tensors import refuse, require, require_rows

_ALIGN = 16
TILE_FIELDS = 3
"""Of `splice_cuda_tile`: expert, first row, rows."""


class Permuting(Structure):
    """`splice_cuda_permutation` of `csrc/cuda/splice_cuda.h`."""

    _fields_ = (
        *((name, c_void_p) for name in ("experts", "places", "sources", "counts", "offsets", "tiles", "tile_count")),
        *((name, c_int64) for name in ("tokens", "top_k", "num_experts", "max_rows", "tile_rows")),
    )


class Gathering(Structure):
    """`splice_cuda_gathering`."""

    _fields_ = (
        *((name, c_void_p) for name in ("y", "x", "places")),
        *((name, c_int64) for name in ("tokens", "top_k", "size", "x_stride")),
    )


class Unpermuting(Structure):
    """`splice_cuda_unpermutation`."""

    _fields_ = (
        *((name, c_void_p) for name in ("out", "y", "shared", "places", "weights")),
        *((name, c_int64) for name in ("tokens", "top_k", "size", "shared_stride")),
    )


@dataclass(frozen=True, slots=True)
class Permutation:
    """Where every choice of a step stands once choices are in the order of experts. All int32, on the device."""

    places: torch.Tensor
    """`[M, top_k]`: the row of a choice; −1 where its expert is none of these."""
    sources: torch.Tensor
    """`[rows]`: the token of a row. Contiguous rows fill `M * top_k`, masked ones `num_experts * max_rows`; what no
    choice fills holds garbage."""
    counts: torch.Tensor
    """`[num_experts]`: rows of each."""
    offsets: torch.Tensor
    """`[num_experts]`: its first row."""
    tiles: torch.Tensor
    """`[bound, 3]`: expert, first row, rows; the first `tile_count` of them."""
    tile_count: torch.Tensor
    """`[1]`."""
    tile_rows: int

    @property
    def rows(self) -> int:
        return self.sources.shape[0]


def permute(
    library: Library, experts: torch.Tensor, num_experts: int, tile_rows: int, max_rows: int | None = None
) -> Permutation:
    """Of `experts` `[M, top_k]` int64, those of one expert in the order of tokens: one expert's rows right behind
    another's or, with `max_rows` (not below M), each expert's in as many rows of its own.

    An id outside `num_experts` is nobody's: where experts live on several devices, each takes its own.
    """
    device = library.device_type
    address = require("experts", experts, torch.int64, (None, None), device)
    tokens, top_k = experts.shape
    if tile_rows < 1:
        raise refuse("tile_rows", tile_rows, "at least 1")
    bound = library.function("permute_tiles")
    bound.restype = c_int64
    tiles = int(bound(*(ctypes.c_int64(number) for number in (tokens, top_k, num_experts, tile_rows))))

    def room(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int32, device=experts.device)

    rows = tokens * top_k if max_rows is None else num_experts * max_rows
    made = Permutation(
        room(tokens, top_k),
        room(rows),
        room(num_experts),
        room(num_experts),
        room(tiles, TILE_FIELDS),
        room(1),
        tile_rows,
    )
    parts = (made.places, made.sources, made.counts, made.offsets, made.tiles, made.tile_count)
    sizes = (tokens, top_k, num_experts, max_rows or 0, tile_rows)
    library.call("permute", Permuting(address, *(part.data_ptr() for part in parts), *sizes))
    return made


def gather_rows(library: Library, x: torch.Tensor, permutation: Permutation) -> torch.Tensor:
    """`x` `[M, size]` bfloat16, rows perhaps strided, in the permutation's order: `[rows, size]`."""
    tokens, top_k = permutation.places.shape
    address, stride = require_rows("x", x, BF16, (tokens, None), library.device_type, _ALIGN)
    y = torch.empty(permutation.rows, x.shape[1], dtype=BF16, device=x.device)
    places = permutation.places.data_ptr()
    library.call("gather_rows", Gathering(y.data_ptr(), address, places, tokens, top_k, x.shape[1], stride))
    return y


def unpermute(
    library: Library,
    y: torch.Tensor,
    permutation: Permutation,
    weights: torch.Tensor,
    shared: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weighted sums of `signatures.ExpertsOp`, `[M, size]`, from `y` `[rows, size]` bfloat16. A choice without a
    place adds nothing."""
    device, (tokens, top_k) = library.device_type, permutation.places.shape
    rows = require("y", y, BF16, (permutation.rows, None), device, _ALIGN)
    size = y.shape[1]
    shares = require("weights", weights, torch.float32, (tokens, top_k), device)
    beside, stride = None, 0
    if shared is not None:
        beside, stride = require_rows("shared", shared, BF16, (tokens, size), device, _ALIGN)
    out = torch.empty(tokens, size, dtype=BF16, device=y.device)
    places = permutation.places.data_ptr()
    library.call("unpermute", Unpermuting(out.data_ptr(), rows, beside, places, shares, tokens, top_k, size, stride))
    return out
