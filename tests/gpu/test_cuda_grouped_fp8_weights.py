"""Grouped products with weights in e4m3 codes: each row has the bits of its expert's own product, in any company."""

from __future__ import annotations

import pytest
import torch
from closeness import distance, same_bits
from fp8_cases import on_device

from engine.ops.cuda.fp8 import gemm_fp8_weights
from engine.ops.cuda.fp8_reference import Fp8Matrix, quantise_weight, weight_values
from engine.ops.cuda.grouped_fp8_weights import FP8_TILE_ROWS, Fp8Stack, grouped_fp8_weights
from engine.ops.cuda.permutation import gather_rows, permute
from engine.ops.cuda.rows import gated_mul
from wire.errors import SpliceError

pytestmark = pytest.mark.usefixtures("poisoned")
EXPERTS = 3
ROUNDING = 4e-3


def _stack(platform, drawn, n: int, k: int, scaling: str, parts: int = 1) -> tuple[Fp8Stack, list[list[Fp8Matrix]]]:
    """Matrices of as many parts each, and those parts."""
    experts = [
        [quantise_weight(drawn(n // parts, k, scale=(1 + e + part) * k**-0.5).cpu(), scaling) for part in range(parts)]
        for e in range(EXPERTS)
    ]
    codes = torch.stack([torch.cat([part.codes.view(torch.uint8) for part in expert]) for expert in experts])
    scales = torch.stack([torch.cat([part.scales for part in expert]) for expert in experts])
    codes = codes.view(torch.float8_e4m3fn).to(platform.device)
    on = [[on_device(part, platform.device) for part in expert] for expert in experts]
    return Fp8Stack(codes, scales.to(platform.device), scaling), on


def _choices(platform, tokens: int) -> torch.Tensor:
    """Among which the last expert has few and the first none at all."""
    return torch.where(torch.arange(2 * tokens) % 9 == 4, 2, 1).view(tokens, 2).to(platform.device)


@pytest.mark.parametrize("scaling", ["rows", "blocks"])
@pytest.mark.parametrize(("tile_rows", "n", "k"), [(16, 8, 16), (16, 136, 272), (64, 136, 144)])
def test_a_row_has_the_bits_of_its_experts_own_product(platform, drawn, reseeded, scaling, tile_rows, n, k):
    x, ids = drawn(37, k), _choices(platform, 37)
    stack, matrices = _stack(platform, drawn, n, k, scaling)
    order = permute(platform.library, ids, EXPERTS, tile_rows)
    reseeded(n + tile_rows)
    found = grouped_fp8_weights(platform.library, x, stack, order, gather=True)
    gathered = gather_rows(platform.library, x, order)
    first = 0
    for expert, count in enumerate(order.counts.tolist()):
        rows, [matrix] = gathered[first : first + count], matrices[expert]
        if count:
            assert (
                distance(found[first : first + count], rows.double().cpu() @ weight_values(_host(matrix)).t())
                < ROUNDING
            )
            own = gemm_fp8_weights(platform.library, rows, matrix, tile=0)
            assert same_bits(found[first : first + count], own), expert
        first += count
    for other in FP8_TILE_ROWS:
        again = permute(platform.library, ids, EXPERTS, other)
        assert same_bits(grouped_fp8_weights(platform.library, gathered, stack, again), found)
    alone = permute(platform.library, ids[20:21], EXPERTS, 16)
    row = grouped_fp8_weights(platform.library, x[20:21], stack, alone, gather=True)
    assert same_bits(row[alone.places[0].long()], found[order.places[20].long()])


def _host(matrix: Fp8Matrix) -> Fp8Matrix:
    return Fp8Matrix(matrix.codes.cpu(), matrix.scales.cpu(), matrix.scaling)


@pytest.mark.parametrize("scaling", ["rows", "blocks"])
@pytest.mark.parametrize(("tile_rows", "wide"), [(16, 88), (64, 200)])
def test_an_activation_has_the_bits_of_products_and_gate_by_themselves(platform, drawn, scaling, tile_rows, wide):
    x, ids = drawn(21, 144, scale=4.0), _choices(platform, 21)
    stack, matrices = _stack(platform, drawn, 2 * wide, 144, scaling, parts=2)
    order = permute(platform.library, ids, EXPERTS, tile_rows)
    found = grouped_fp8_weights(platform.library, x, stack, order, gather=True, activation="silu")
    rows, first = gather_rows(platform.library, x, order), int(order.offsets[2])
    own = [gemm_fp8_weights(platform.library, rows[first:].contiguous(), part, tile=0) for part in matrices[2]]
    assert same_bits(found[first:], gated_mul(platform.library, torch.cat(own, dim=1), "silu"))


def test_a_bias_is_added_to_the_scaled_sum(platform, drawn):
    x, ids, bias = drawn(9, 144), _choices(platform, 9), drawn(EXPERTS, 24)
    stack, matrices = _stack(platform, drawn, 24, 144, "rows")
    order = permute(platform.library, ids, EXPERTS, 16)
    found = grouped_fp8_weights(platform.library, x, stack, order, bias, gather=True)
    first = int(order.offsets[2])
    rows = gather_rows(platform.library, x, order)[first:].double().cpu()
    exact = rows @ weight_values(_host(matrices[2][0])).t() + bias[2].double().cpu()
    assert distance(found[first:], exact) < ROUNDING


def test_what_the_kernel_does_not_take_is_named(platform, drawn):
    library, x, ids = platform.library, drawn(5, 144), _choices(platform, 5)
    stack, _ = _stack(platform, drawn, 24, 144, "rows")
    order, wide = permute(library, ids, EXPERTS, 16), permute(library, ids, EXPERTS, 128)
    short = Fp8Stack(stack.codes[:, :, :136].contiguous(), stack.scales, "rows")
    of_blocks, of_tensors = (Fp8Stack(stack.codes, stack.scales, scaling) for scaling in ("blocks", "tensor"))
    for words, call in (
        ("tiles of 128 rows", lambda: grouped_fp8_weights(library, x, stack, wide, gather=True)),
        ("multiples of 16", lambda: grouped_fp8_weights(library, x[:, :136], short, order, gather=True)),
        ("scales is of shape", lambda: grouped_fp8_weights(library, x, of_blocks, order)),
        ("scaled by tensor", lambda: grouped_fp8_weights(library, x, of_tensors, order)),
        ("weight is of torch.uint8", lambda: grouped_fp8_weights(
            library, x, Fp8Stack(stack.codes.view(torch.uint8), stack.scales, "rows"), order, gather=True
        )),
    ):  # fmt: skip
        with pytest.raises(SpliceError, match=words):
            call()
