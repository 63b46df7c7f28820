"""Quantised weights: the bits of the same weights dequantised to float32, whatever the number of rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quantised_weights import KINDS, SIMPLE_KINDS, every_scale_of_mxfp4, packed, random_blocks, values_of

from engine._native import Kernels, PackedLinear
from engine.ops.native import NativeOps

SHAPES = [
    (1, 32, 1),
    (1, 576, 130),
    (1, 1536, 48),
    (2, 64, 17),
    (5, 96, 100),
    (7, 320, 33),
    (13, 576, 31),
    (97, 608, 40),
    (1, 512, 50),
    (3, 256, 20),
    (30, 768, 17),
]
CASES = [(kind, *shape) for kind in KINDS for shape in SHAPES if kind in SIMPLE_KINDS or shape[1] % 256 == 0]


@pytest.mark.parametrize(("kind", "m", "k", "n"), CASES)
def test_products_are_those_of_the_dequantised_weights(ops: NativeOps, m: int, k: int, n: int, kind: str) -> None:
    blocks = random_blocks(n, k, kind)
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(m))
    expected = ops.lm_head(x, ops.pack(torch.from_numpy(values_of(blocks, kind))))
    assert torch.equal(ops.lm_head(x, packed(blocks, k, kind)), expected)
    assert torch.equal(ops.lm_head(x, packed(blocks, k, kind, "float32")), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone_equals_itself_among_others(ops: NativeOps, other_ops: NativeOps, kind: str) -> None:
    weight = packed(random_blocks(50, 512, kind), 512, kind)
    x = torch.randn(40, 512, generator=torch.Generator().manual_seed(3))
    together = ops.lm_head(x, weight)
    assert torch.equal(together, torch.cat([other_ops.lm_head(row, weight) for row in x.split(1)]))


@pytest.mark.parametrize("into", ["same", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_dequantised_ones(kind: str, into: str) -> None:
    blocks = random_blocks(37, 512, kind)
    weight = packed(blocks, 512, kind, kind if into == "same" else into)
    ids = torch.tensor([36, 0, 15, 16, 0])
    out = torch.empty(len(ids), 512)
    weight.rows(ids, out)
    assert torch.equal(out, torch.from_numpy(values_of(blocks, kind))[ids])


def test_every_half_precision_scale_is_read_exactly() -> None:
    halves = torch.arange(1 << 16).to(torch.int32).to(torch.uint16)
    scales = halves.view(torch.float16).float()
    blocks = torch.cat([halves.view(torch.uint8).view(-1, 2), torch.ones(1 << 16, 32, dtype=torch.uint8)], dim=1)
    weight = packed(blocks.numpy(), 32, "q8_0")
    out = torch.empty(1 << 16, 32)
    weight.rows(torch.arange(1 << 16), out)
    assert torch.equal(out.nan_to_num(nan=1e9), scales.nan_to_num(nan=1e9)[:, None].expand(-1, 32))
    for isa in {Kernels().isa, "portable"}:
        product = NativeOps(Kernels(isa, 1)).lm_head(torch.eye(1, 32), weight)[0]
        finite = scales.isfinite()
        assert torch.equal(product[finite], scales[finite])


FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
POWERS = np.arange(-127, 128)[:, None]
"""Of every scale of MXFP4 that is a number."""


def test_every_scale_and_code_of_mxfp4_is_read_exactly() -> None:
    """A six under the largest scales is infinite, a one is not."""
    with np.errstate(over="ignore"):
        values = np.ldexp(np.tile(FP4, 2), POWERS).astype(np.float32)
    assert not np.isfinite(values).all()
    out = torch.empty(255, 32)
    packed(every_scale_of_mxfp4(), 32, "mxfp4").rows(torch.arange(255), out)
    assert torch.equal(out, torch.from_numpy(values))


def test_every_scale_of_mxfp4_multiplies_exactly(ops: NativeOps) -> None:
    """Of codes that are finite under the largest, from 0 to 1.5."""
    blocks = every_scale_of_mxfp4()
    blocks[:, 1:] &= 0x33
    values = torch.from_numpy(np.ldexp(np.tile(FP4[:4], 8), POWERS).astype(np.float32))
    weight = packed(blocks, 32, "mxfp4")
    assert torch.equal(ops.lm_head(torch.eye(32), weight), values.t())
    for depth in range(32):
        alone = torch.zeros(1, 32)
        alone[0, depth] = 1.0
        assert torch.equal(ops.lm_head(alone, weight)[0], values[:, depth])


def test_wrong_blocks_are_refused() -> None:
    weight = PackedLinear(4, 64, "q4_1")
    with pytest.raises(ValueError, match="another length"):
        weight.load_blocks(torch.zeros(4, 36, dtype=torch.uint8), "q4_1")
    with pytest.raises(ValueError, match="do not fit"):
        weight.load_blocks(torch.zeros(4, 40, dtype=torch.uint8), "q4_1", 1)
    with pytest.raises(ValueError, match="their own type"):
        weight.load_blocks(torch.zeros(4, 68, dtype=torch.uint8), "q8_0")
    with pytest.raises(ValueError, match="takes load_blocks"):
        weight.load(torch.zeros(4, 64))
    with pytest.raises(ValueError, match="multiple of 32"):
        PackedLinear(4, 40, "q8_0")
    with pytest.raises(ValueError, match="of 256"):
        PackedLinear(4, 64, "q4_k")
