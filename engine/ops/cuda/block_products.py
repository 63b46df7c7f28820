"""Products with quantised weights. Those of GGUF files with int8 activations have the bits of this project's CPU
kernels (`engine.ops.native` with activations `int8`), whatever the instruction set there and the number of rows here.

`BlockProducts` has the operations of `signatures.PackOp`, `RowsOp`, `LinearOp` and `LmHeadOp`; the functions above it
take one packed matrix each.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from ctypes import Structure, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from engine.ops.cuda.block_pack import (
    BLOCK_DEPTH,
    FORMS,
    NIBBLE_KINDS,
    PANEL_COLUMNS,
    SLICE_BLOCKS,
    SLICE_BYTES,
    SLICE_DEPTH,
    pack_blocks,
    pack_groups,
)
from engine.ops.cuda.library import Library
from engine.ops.cuda.tensors import refuse, require, require_rows
from engine.ops.weight_matrix import QuantizedMatrix, WeightMatrix

BF16, FLOAT32 = torch.bfloat16, torch.float32
TILE_ROWS = (8, 16, 64)
"""Rows of each tile. All give the same bits."""
_ALIGN = 16
_MANY_COLUMNS = 128
"""Of the tile of 64 rows."""
_WANTED_BLOCKS = 128
"""Blocks of a grid under which a wide tile leaves much of a GPU without work: about one a multiprocessor."""


class Quantise(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("quants", "scales", "x")),
        *((name, c_int64) for name in ("rows", "k", "x_stride")),
        ("x_is_float32", c_int32),
    )


class BlockGemm(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("y", "x", "scales", "w", "bias")),
        *((name, c_int64) for name in ("m", "n", "k", "x_stride", "y_stride")),
        *((name, c_int32) for name in ("form", "y_is_float32", "bias_is_float32", "tile")),
    )


class BlockRows(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("y", "w", "ids")),
        *((name, c_int64) for name in ("rows", "n", "k")),
        ("form", c_int32),
    )


@dataclass(frozen=True, slots=True)
class BlockWeight:
    """A matrix `[n, k]` on a device, as `block_pack` lays it out."""

    data: torch.Tensor
    """`[ceil(n / 16), ceil(k / 128), bytes of a slice]` uint8."""
    kind: str
    """One of `block_pack.FORMS`."""
    n: int
    k: int


@dataclass(frozen=True, slots=True)
class QuantisedRows:
    """Activations as products take them."""

    quants: torch.Tensor
    """`[M, K]` int8."""
    scales: torch.Tensor
    """`[2, M, 4 · ceil(K / 128)]` float32: of blocks of 32, then those times the sums of their quants. What is beyond
    K / 32 is never read."""


def pack_weight(matrix: QuantizedMatrix, device: torch.device) -> BlockWeight:
    """Raises SpliceError for a kind or a shape that there are no products with."""
    data = torch.from_numpy(pack_blocks(matrix.blocks, matrix.kind, matrix.shape))
    return BlockWeight(data.to(device), matrix.kind, *matrix.shape)


def pack_group_weight(
    quants: npt.NDArray[Any], scales: npt.NDArray[Any], zeros: npt.NDArray[Any], device: torch.device
) -> BlockWeight:
    """See `block_pack.pack_groups`."""
    data = torch.from_numpy(pack_groups(quants, scales, zeros))
    return BlockWeight(data.to(device), "groups", quants.shape[0], quants.shape[1])


def quantise_rows(library: Library, x: torch.Tensor) -> QuantisedRows:
    """`x` `[M, K]` bfloat16 or float32, rows perhaps strided, K a multiple of 32. A block that holds infinity or NaN
    has a NaN for a scale."""
    dtype = FLOAT32 if x.dtype == FLOAT32 else BF16
    address, stride = require_rows("x", x, dtype, (None, None), library.device_type, _ALIGN)
    rows, k = x.shape
    if k % BLOCK_DEPTH or k == 0:
        raise refuse("x", f"of {k} columns", f"a multiple of {BLOCK_DEPTH}")
    quants = torch.empty(rows, k, dtype=torch.int8, device=x.device)
    scales = torch.empty(2, rows, scale_stride(k), dtype=FLOAT32, device=x.device)
    places = quants.data_ptr(), scales.data_ptr(), address
    library.call("quantise_rows", Quantise(*places, rows, k, stride, dtype == FLOAT32))
    return QuantisedRows(quants, scales)


def block_gemm(
    library: Library,
    x: QuantisedRows,
    weight: BlockWeight,
    bias: torch.Tensor | None = None,
    *,
    tile: int | None = None,
    out_dtype: torch.dtype = BF16,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`x` `[M, K]` times the transposed `weight` `[N, K]`, plus `bias` `[N]` in bfloat16 or float32: `[M, N]` in
    bfloat16 or float32, into `out` (rows perhaps strided) where that is given. Tiles differ in speed alone; None
    chooses one."""
    device, rows = library.device_type, x.quants.shape[0]
    quants = require("x.quants", x.quants, torch.int8, (None, weight.k), device, _ALIGN)
    scales = require("x.scales", x.scales, FLOAT32, (2, rows, scale_stride(weight.k)), device, _ALIGN)
    y = torch.empty(rows, weight.n, dtype=out_dtype, device=x.quants.device) if out is None else out
    arguments = _arguments(library, y, rows, weight, bias, tile, out_dtype)
    arguments.x, arguments.x_stride, arguments.scales = quants, weight.k, scales
    library.call("block_gemm", arguments)
    return y


def w4a16_gemm(
    library: Library,
    x: torch.Tensor,
    weight: BlockWeight,
    bias: torch.Tensor | None = None,
    *,
    tile: int | None = None,
    out_dtype: torch.dtype = BF16,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `block_gemm`, with `x` `[M, K]` in bfloat16, rows perhaps strided, and a weight of four bits, which is not
    rounded."""
    if weight.kind not in NIBBLE_KINDS:
        raise refuse("weight", weight.kind, f"one of {', '.join(sorted(NIBBLE_KINDS))}")
    address, stride = require_rows("x", x, BF16, (None, weight.k), library.device_type, _ALIGN)
    y = torch.empty(x.shape[0], weight.n, dtype=out_dtype, device=x.device) if out is None else out
    arguments = _arguments(library, y, x.shape[0], weight, bias, tile, out_dtype)
    arguments.x, arguments.x_stride = address, stride
    library.call("w4a16_gemm", arguments)
    return y


def block_rows(library: Library, weight: BlockWeight, ids: torch.Tensor) -> torch.Tensor:
    """Rows `ids` `[M]` int64: `[M, K]` float32; NaN where an id is no row's."""
    device = library.device_type
    address = _weight_address(weight, device)
    wanted = require("ids", ids, torch.int64, (None,), device)
    out = torch.empty(len(ids), weight.k, device=ids.device)
    places = out.data_ptr(), address, wanted
    library.call("block_rows", BlockRows(*places, len(ids), weight.n, weight.k, FORMS[weight.kind]))
    return out


def tile_for(rows: int, n: int) -> int:
    """The tile that a product is likely fastest with. No result depends on it."""
    if rows <= TILE_ROWS[0]:
        return 0
    blocks = -(-rows // TILE_ROWS[2]) * -(-n // _MANY_COLUMNS)
    return 1 if rows <= TILE_ROWS[1] or (rows <= TILE_ROWS[2] and blocks < _WANTED_BLOCKS) else 2


def scale_stride(k: int) -> int:
    """Scales from one row to the next."""
    return -(-k // SLICE_DEPTH) * SLICE_BLOCKS


class BlockProducts:
    """The operations of `signatures`, on one library and device, with int8 activations or, for weights of four bits,
    with bfloat16 ones."""

    def __init__(
        self, library: Library, device: torch.device, activations: Literal["int8", "bfloat16"] = "int8"
    ) -> None:
        self._library, self._device, self._int8 = library, device, activations == "int8"

    def pack(self, *parts: WeightMatrix) -> tuple[BlockWeight, ...]:
        """See `signatures.PackOp`: one matrix for each run of parts of one kind. Raises SpliceError for a part that is
        not quantised, or of a kind there are no products with."""
        return tuple(
            pack_weight(_stacked(list(run)), self._device) for _, run in itertools.groupby(parts, key=_kind_of)
        )

    def rows(self, weight: tuple[BlockWeight, ...], ids: torch.Tensor) -> torch.Tensor:
        """See `signatures.RowsOp`; float32. Of a matrix of one kind."""
        if len(weight) != 1:
            raise refuse("weight", " and ".join(part.kind for part in weight), "a matrix of one kind")
        return block_rows(self._library, weight[0], ids)

    def linear(self, x: torch.Tensor, weight: tuple[BlockWeight, ...], bias: torch.Tensor | None) -> torch.Tensor:
        """See `signatures.LinearOp`."""
        return self._product(x, weight, bias, x.dtype)

    def lm_head(self, x: torch.Tensor, weight: tuple[BlockWeight, ...]) -> torch.Tensor:
        """See `signatures.LmHeadOp`."""
        return self._product(x, weight, None, FLOAT32)

    def _product(
        self, x: torch.Tensor, weight: tuple[BlockWeight, ...], bias: torch.Tensor | None, dtype: torch.dtype
    ) -> torch.Tensor:
        out = torch.empty(x.shape[0], sum(part.n for part in weight), dtype=dtype, device=x.device)
        quantised = quantise_rows(self._library, x) if self._int8 else None
        first = 0
        for part in weight:
            columns = slice(first, first + part.n)
            own, place = None if bias is None else bias[columns], out[:, columns]
            if quantised is None:
                w4a16_gemm(self._library, x, part, own, out_dtype=dtype, out=place)
            else:
                block_gemm(self._library, quantised, part, own, out_dtype=dtype, out=place)
            first += part.n
        return out


def _kind_of(part: WeightMatrix) -> str:
    if isinstance(part, QuantizedMatrix):
        return part.kind
    raise refuse("part", f"a tensor of {part.dtype}", "a quantised matrix: others are multiplied as they are")


def _stacked(parts: Sequence[WeightMatrix]) -> QuantizedMatrix:
    matrices = [part for part in parts if isinstance(part, QuantizedMatrix)]
    shape = (sum(part.shape[0] for part in matrices), matrices[0].shape[1])
    blocks = [part.blocks for part in matrices]
    return QuantizedMatrix(matrices[0].kind, shape, blocks[0] if len(blocks) == 1 else np.concatenate(blocks))


def _weight_address(weight: BlockWeight, device: str) -> int:
    if weight.kind not in FORMS:
        raise refuse("weight.kind", repr(weight.kind), f"one of {', '.join(FORMS)}")
    shape = (-(-weight.n // PANEL_COLUMNS), -(-weight.k // SLICE_DEPTH), SLICE_BYTES[weight.kind])
    return require("weight", weight.data, torch.uint8, shape, device, _ALIGN)


def _arguments(
    library: Library,
    y: torch.Tensor,
    rows: int,
    weight: BlockWeight,
    bias: torch.Tensor | None,
    tile: int | None,
    out_dtype: torch.dtype,
) -> BlockGemm:
    """All but what is the activations' own."""
    if out_dtype not in (BF16, FLOAT32):
        raise refuse("out_dtype", out_dtype, "torch.bfloat16 or torch.float32")
    device = library.device_type
    address = _weight_address(weight, device)
    place, stride = require_rows("out", y, out_dtype, (rows, weight.n), device)
    added, bias_is_float32 = None, False
    if bias is not None:
        bias_is_float32 = bias.dtype == FLOAT32
        added = require("bias", bias, FLOAT32 if bias_is_float32 else BF16, (weight.n,), device)
    return BlockGemm(
        y=place, w=address, bias=added, m=rows, n=weight.n, k=weight.k, y_stride=stride, form=FORMS[weight.kind],
        y_is_float32=out_dtype == FLOAT32, bias_is_float32=bias_is_float32,
        tile=tile_for(rows, weight.n) if tile is None else tile,
    )  # fmt: skip
