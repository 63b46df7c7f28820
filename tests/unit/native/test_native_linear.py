"""Products on packed weights: right against float64, and the same bits whatever stands beside a row."""

from __future__ import annotations

import pytest
import torch

from engine._native import Kernels, PackedLinear
from engine.ops.native import NativeOps

SHAPES = [(1, 1, 1), (1, 576, 16), (2, 3, 17), (3, 577, 33), (5, 64, 100), (6, 31, 15), (7, 300, 48), (12, 513, 130)]
SHAPES += [(13, 96, 64), (24, 255, 16), (70, 256, 31), (97, 600, 40), (200, 257, 19)]


def operands(m: int, k: int, n: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(m * 1000 + k * 10 + n)
    x = torch.randn(m, k, generator=generator)
    return x, torch.randn(n, k, generator=generator).to(dtype), torch.randn(n, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_product_is_near_the_float64_one(ops: NativeOps, m: int, k: int, n: int, dtype: torch.dtype) -> None:
    x, weight, bias = operands(m, k, n, dtype)
    expected = x.double() @ weight.double().t()
    bound = (x.double().abs() @ weight.double().abs().t()) * k * 2.0**-24 + 1e-30
    packed = ops.pack(weight)
    assert ((ops.lm_head(x, packed) - expected).abs() <= bound).all()
    assert torch.equal(ops.linear(x, packed, bias), ops.lm_head(x, packed) + bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_bits_are_equal_on_every_instruction_set_and_thread_count(
    other_ops: NativeOps, best_ops: NativeOps, m: int, k: int, n: int, dtype: torch.dtype
) -> None:
    x, weight, bias = operands(m, k, n, dtype)
    packed = NativeOps.pack(weight)
    assert torch.equal(other_ops.linear(x, packed, bias), best_ops.linear(x, packed, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_among_any_neighbours(ops: NativeOps, dtype: torch.dtype) -> None:
    x, weight, _ = operands(70, 301, 70, dtype)
    packed = ops.pack(weight)
    alone = torch.cat([ops.lm_head(x[i : i + 1], packed) for i in range(70)])
    for rows in range(1, 71):
        assert torch.equal(ops.lm_head(x[:rows], packed), alone[:rows]), rows
    assert torch.equal(ops.lm_head(x.flip(0), packed), alone.flip(0))


def test_a_product_is_one_chain_of_fused_multiply_adds(ops: NativeOps) -> None:
    # 1 + 2^-30 - 1: kept by neither order in fp32 sums, but (1 + 2^-12)² - (1 + 2^-11) = 2^-24 needs the fused product.
    x = torch.tensor([[1.0, 1.0 + 2.0**-12]])
    weight = torch.tensor([[-(1.0 + 2.0**-11), 1.0 + 2.0**-12]])
    assert ops.lm_head(x, ops.pack(weight)).item() == 2.0**-24


def test_weights_can_be_stacked_row_by_row_and_read_back() -> None:
    weight = torch.randn(83, 37)
    for dtype in (torch.float32, torch.bfloat16):
        packed = PackedLinear(83, 37, str(dtype).removeprefix("torch."))
        for first, last in ((0, 5), (5, 50), (50, 83)):
            packed.load(weight[first:last].contiguous(), first)
        ids = torch.tensor([82, 0, 49, 50, 0])
        out = torch.empty(5, 37)
        packed.rows(ids, out)
        assert torch.equal(out, weight.to(dtype).float()[ids])
        whole = NativeOps(Kernels()).pack(weight.to(dtype))
        x = torch.randn(3, 37)
        assert torch.equal(NativeOps(Kernels()).lm_head(x, packed), NativeOps(Kernels()).lm_head(x, whole))


def test_packed_bfloat16_takes_two_bytes_a_weight() -> None:
    assert NativeOps.pack(torch.zeros(64, 576, dtype=torch.bfloat16)).nbytes == 64 * 576 * 2
    assert NativeOps.pack(torch.zeros(64, 576)).nbytes == 64 * 576 * 4


def test_strided_rows_and_misaligned_memory_are_read_in_place(ops: NativeOps) -> None:
    wide = torch.randn(9, 100)
    packed = ops.pack(torch.randn(40, 63))
    assert torch.equal(ops.lm_head(wide[:, 5:68], packed), ops.lm_head(wide[:, 5:68].contiguous(), packed))


def test_no_rows_and_no_depth(ops: NativeOps) -> None:
    assert ops.lm_head(torch.empty(0, 8), ops.pack(torch.randn(5, 8))).shape == (0, 5)
    for rows in (1, 40):
        out = ops.linear(torch.empty(rows, 0), ops.pack(torch.empty(5, 0)), torch.ones(5))
        assert torch.equal(out, torch.ones(rows, 5))


def test_nan_reaches_the_row_it_is_in_and_no_other(ops: NativeOps) -> None:
    x = torch.randn(20, 33)
    x[7, 5] = float("nan")
    out = ops.lm_head(x, ops.pack(torch.randn(18, 33)))
    assert out[7].isnan().all()
    assert not out[[i for i in range(20) if i != 7]].isnan().any()


def test_wrong_shapes_are_refused() -> None:
    ops = NativeOps(Kernels())
    packed = ops.pack(torch.randn(5, 8))
    with pytest.raises(ValueError, match="columns"):
        ops.lm_head(torch.randn(2, 7), packed)
    with pytest.raises(ValueError, match="bias"):
        ops.linear(torch.randn(2, 8), packed, torch.randn(4))
    with pytest.raises(ValueError, match="do not fit"):
        packed.load(torch.randn(2, 8), 4)
    with pytest.raises(ValueError, match="out of range"):
        packed.rows(torch.tensor([5]), torch.empty(1, 8))
    with pytest.raises(ValueError, match="unknown"):
        Kernels("sse9", 1)
