"""Quantised weights: the bits of the same weights dequantised to float32, whatever the number of rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from engine._native import Kernels, PackedLinear
from engine.ops.native import NativeOps

KINDS = ["q4_0", "q4_1", "q8_0"]
SHAPES = [
    (1, 32, 1),
    (1, 576, 130),
    (1, 1536, 48),
    (2, 64, 17),
    (5, 96, 100),
    (7, 320, 33),
    (13, 576, 31),
    (97, 608, 40),
]


def blocks_and_values(n: int, k: int, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A random weight `[n, k]` as a file stores it, uint8 `[n, bytes]`, and as the gguf package reads it, float32."""
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(n * 1000 + k)).numpy()
    weight[0, :32] = 0.0
    weight[-1, -32:] *= 1e-6  # scales that are denormal in fp16
    stored = GGMLQuantizationType[kind.upper()]
    blocks = quantize(weight, stored)
    return torch.from_numpy(blocks), torch.from_numpy(np.array(dequantize(blocks, stored), dtype=np.float32))


def packed_blocks(blocks: torch.Tensor, n: int, k: int, kind: str, into: str) -> PackedLinear:
    packed = PackedLinear(n, k, into)
    cut = n // 3
    packed.load_blocks(blocks[cut:], kind, cut)
    packed.load_blocks(blocks[:cut], kind, 0)
    return packed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_products_are_those_of_the_dequantised_weights(ops: NativeOps, m: int, k: int, n: int, kind: str) -> None:
    blocks, values = blocks_and_values(n, k, kind)
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(m))
    expected = ops.lm_head(x, ops.pack(values))
    assert torch.equal(ops.lm_head(x, packed_blocks(blocks, n, k, kind, kind)), expected)
    assert torch.equal(ops.lm_head(x, packed_blocks(blocks, n, k, kind, "float32")), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone_equals_itself_among_others(ops: NativeOps, other_ops: NativeOps, kind: str) -> None:
    blocks, _ = blocks_and_values(50, 320, kind)
    packed = packed_blocks(blocks, 50, 320, kind, kind)
    x = torch.randn(40, 320, generator=torch.Generator().manual_seed(3))
    together = ops.lm_head(x, packed)
    assert torch.equal(together, torch.cat([other_ops.lm_head(row, packed) for row in x.split(1)]))


@pytest.mark.parametrize("into", ["same", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_dequantised_ones(kind: str, into: str) -> None:
    blocks, values = blocks_and_values(37, 96, kind)
    packed = packed_blocks(blocks, 37, 96, kind, kind if into == "same" else into)
    ids = torch.tensor([36, 0, 15, 16, 0])
    out = torch.empty(len(ids), 96)
    packed.rows(ids, out)
    assert torch.equal(out, values[ids])


def test_every_half_precision_scale_is_read_exactly() -> None:
    halves = torch.arange(1 << 16).to(torch.int32).to(torch.uint16)
    scales = halves.view(torch.float16).float()
    blocks = torch.cat([halves.view(torch.uint8).view(-1, 2), torch.ones(1 << 16, 32, dtype=torch.uint8)], dim=1)
    packed = packed_blocks(blocks, 1 << 16, 32, "q8_0", "q8_0")
    out = torch.empty(1 << 16, 32)
    packed.rows(torch.arange(1 << 16), out)
    assert torch.equal(out.nan_to_num(nan=1e9), scales.nan_to_num(nan=1e9)[:, None].expand(-1, 32))
    for isa in {Kernels().isa, "portable"}:
        product = NativeOps(Kernels(isa, 1)).lm_head(torch.eye(1, 32), packed)[0]
        finite = scales.isfinite()
        assert torch.equal(product[finite], scales[finite])


def test_wrong_blocks_are_refused() -> None:
    packed = PackedLinear(4, 64, "q4_1")
    with pytest.raises(ValueError, match="another length"):
        packed.load_blocks(torch.zeros(4, 36, dtype=torch.uint8), "q4_1")
    with pytest.raises(ValueError, match="do not fit"):
        packed.load_blocks(torch.zeros(4, 40, dtype=torch.uint8), "q4_1", 1)
    with pytest.raises(ValueError, match="their own type"):
        packed.load_blocks(torch.zeros(4, 68, dtype=torch.uint8), "q8_0")
    with pytest.raises(ValueError, match="takes load_blocks"):
        packed.load(torch.zeros(4, 64))
    with pytest.raises(ValueError, match="multiple of 32"):
        PackedLinear(4, 40, "q8_0")
