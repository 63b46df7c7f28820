"""int8 activations: the documented arithmetic, bit for bit, on every machine, for any rows, threads and chunks."""

from __future__ import annotations

import int8_arithmetic
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from quantised_weights import KINDS, every_scale_of_mxfp4, packed, random_blocks, values_of

from engine._native import Kernels, PackedLinear, supported_isas

SHAPES = [
    (1, 1, 1),
    (1, 2, 130),
    (2, 1, 17),
    (3, 3, 33),
    (4, 2, 50),
    (5, 3, 100),
    (12, 1, 16),
    (13, 2, 40),
    (16, 1, 33),
    (17, 2, 16),
    (31, 3, 48),
    (97, 1, 20),
]
"""Rows, depth in units of what a type asks for, columns."""


def depth(kind: str, units: int) -> int:
    return units * (256 if kind.endswith("k") else 96)


def multiply(x: torch.Tensor, weight: PackedLinear, isa: str = "auto", threads: int = 1) -> torch.Tensor:
    out = torch.full((len(x), weight.n), torch.nan)
    Kernels(isa, threads).linear(out, x, weight, None, int8=True)
    return out


def rows(m: int, k: int) -> torch.Tensor:
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(m + k))
    x[:, :32] *= 1e-3
    x[-1, -32:] = 0.0
    return x


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_the_documented_arithmetic(kind: str, isa: str) -> None:
    for m, units, n in SHAPES:
        k = depth(kind, units)
        blocks, x = random_blocks(n, k, kind), rows(m, k)
        expected = torch.from_numpy(int8_arithmetic.product(x.numpy(), blocks, kind))
        assert torch.equal(multiply(x, packed(blocks, k, kind), isa), expected), (m, k, n)


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_near_those_of_the_values_in_float64(kind: str) -> None:
    k = depth(kind, 4)
    blocks, x = random_blocks(70, k, kind), rows(9, k)
    expected = x.double() @ torch.from_numpy(values_of(blocks, kind)).double().t()
    error = (multiply(x, packed(blocks, k, kind)).double() - expected).abs().max()
    assert error < 0.012 * expected.abs().max()  # 127 steps a block


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_bits_alone_among_others_and_on_any_number_of_threads(kind: str) -> None:
    k = depth(kind, 2)
    weight, x = packed(random_blocks(75, k, kind), k, kind), rows(40, k)
    together = multiply(x, weight)
    assert torch.equal(multiply(x, weight, threads=3), together)
    for size in (1, 2, 3, 4, 5, 7, 12, 13, 15, 16, 17, 23, 32):
        assert torch.equal(torch.cat([multiply(part, weight) for part in x.split(size)]), together), size


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_quants_do_not_saturate(kind: str, isa: str) -> None:
    """All bits of the weights set (MXFP4: the code of 6), and Q8_0 at -128, against activations of 127 and -127 in turn
    and all alike."""
    k = depth(kind, 1)
    blocks = random_blocks(34, k, kind)
    blocks[1::2] = np.where(np.arange(blocks.shape[1]) % 2 == 0, 0x01, 0x80)
    blocks[::2] = 0x77 if kind == "mxfp4" else 255
    x = torch.ones(4, k)
    x[1] = -1.0
    x[2, ::2] = -1.0
    x[3, : k // 2] = -1.0
    _make_finite(blocks, kind)
    expected = torch.from_numpy(int8_arithmetic.product(x.numpy(), blocks, kind))
    assert torch.equal(multiply(x, packed(blocks, k, kind), isa), expected)


def _make_finite(blocks: npt.NDArray[np.uint8], kind: str) -> None:
    """The fp16 numbers of every block become 2^-8, or MXFP4's scale."""
    _, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind.upper()]]
    if kind == "mxfp4":
        blocks.reshape(len(blocks), -1, size)[:, :, 0] = 127 - 8
        return
    places = (208,) if kind == "q6_k" else (0, 2) if kind in ("q4_1", "q5_1", "q4_k", "q5_k") else (0,)
    for place in places:
        blocks.reshape(len(blocks), -1, size)[:, :, place : place + 2] = (0x00, 0x1C)


@pytest.mark.parametrize("isa", supported_isas())
def test_every_scale_of_mxfp4_is_the_documented_arithmetic(isa: str) -> None:
    """From denormal ones to those at which a six is beyond float32, though not its product with rows as small."""
    x, blocks = rows(4, 32), every_scale_of_mxfp4()
    expected = torch.from_numpy(int8_arithmetic.product(x.numpy(), blocks, "mxfp4"))
    assert expected.isfinite().all()
    assert torch.equal(multiply(x, packed(blocks, 32, "mxfp4"), isa), expected)


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_shows_in_its_own_row_only(isa: str, bad: float) -> None:
    for kind in KINDS:
        k = depth(kind, 1)
        weight, x = packed(random_blocks(40, k, kind), k, kind), rows(6, k)
        clean = multiply(x, weight, isa)
        x[3, 37] = bad
        found = multiply(x, weight, isa)
        assert found[3].isnan().all()
        keep = torch.arange(6) != 3
        assert torch.equal(found[keep], clean[keep])


def test_blocks_too_small_to_scale_count_as_zeros() -> None:
    weight, x = packed(random_blocks(20, 96, "q8_0"), 96, "q8_0"), torch.zeros(3, 96)
    x[1] = 2.0**-101
    x[2] = 1e-42
    for isa in supported_isas():
        assert torch.equal(multiply(x, weight, isa), torch.zeros(3, 20))


def test_weights_that_are_not_quantised_do_not_heed_it() -> None:
    kernels, x = Kernels(), rows(5, 64)
    weight = PackedLinear(30, 64, "bfloat16")
    weight.load(torch.randn(30, 64).bfloat16())
    found = [torch.empty(5, 30) for _ in range(2)]
    for out, int8 in zip(found, (False, True), strict=True):
        kernels.linear(out, x, weight, None, int8=int8)
    assert torch.equal(*found)
