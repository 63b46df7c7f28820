"""Products of a model whose matrices are in FP8: what is packed with what, which rows meet it, and the exact result."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from closeness import distance, same_bits
from fp8_cases import ROUNDING, exact_product, stored_matrix, values_of, wide_operands

from engine.ops import reference
from engine.ops.cuda.fp8 import gemm_fp8
from engine.ops.cuda.fp8_products import Fp8Products, Fp8Weight, in_bfloat16, rows_that_codes_meet
from engine.ops.cuda.fp8_reference import Fp8Matrix, activation_values, quantise_rows, quantise_weight, weight_values
from engine.ops.weight_matrix import QuantizedMatrix
from wire.errors import SpliceError


@pytest.fixture
def products(platform):
    def make(rows: str = "bfloat16", *, quantises: bool = False) -> Fp8Products:
        is_hopper = platform.name == "gpu" and torch.cuda.get_device_capability()[0] == 9
        multiply = gemm_fp8 if is_hopper else exact_product
        return Fp8Products(
            platform.library, platform.device, reference.linear, rows=rows, quantises=quantises, multiply=multiply
        )

    return make


def _parts(k: int = 144) -> tuple[list[QuantizedMatrix | torch.Tensor], torch.Tensor]:
    """Of every make, and their values in float64; the last has rows that no kernel takes."""
    makes = [("rows", 40), ("rows", 24), ("blocks", 128), ("blocks", 56), ("blocks", 136), (None, 16), ("rows", 12)]
    parts: list[QuantizedMatrix | torch.Tensor] = []
    values = []
    for scaling, n in makes:
        wide = wide_operands(1, n, k)[1]
        part = wide.bfloat16() if scaling is None else stored_matrix(wide, scaling)
        parts.append(part)
        values.append(part.double() if isinstance(part, torch.Tensor) else values_of(part))
    return parts, torch.cat(values)


def _on(device: torch.device, parts):
    return [part.to(device) if isinstance(part, torch.Tensor) else part for part in parts]


@pytest.mark.parametrize("rows", [1, 70])
def test_stacked_parts_of_every_make_give_the_exact_product(platform, products, rows):
    parts, values = _parts()
    x, _, _ = wide_operands(rows, 8, 144)
    bias = wide_operands(1, len(values), 16)[2]
    weight = products().pack(*_on(platform.device, parts))
    exact = x.double() @ values.t()
    on = x.to(platform.device)
    assert distance(products().linear(on, weight, None), exact) < ROUNDING
    found = products().linear(on, weight, bias.to(platform.device))
    assert distance(found, exact + bias.double()) < ROUNDING


def test_a_bias_may_begin_anywhere_and_codes_lie_either_way(platform, products):
    x, wide, bias = wide_operands(3, 52, 64)
    odd, part = wide[:12].bfloat16(), stored_matrix(wide[12:], "rows")
    turned = QuantizedMatrix(part.kind, part.shape, np.asfortranarray(part.blocks), part.scales)
    weight = products().pack(odd.to(platform.device), turned)
    found = products().linear(x.to(platform.device), weight, bias.to(platform.device))
    exact = x.double() @ torch.cat([odd.double(), values_of(part)]).t() + bias.double()
    assert distance(found, exact) < ROUNDING


def test_matrices_stay_as_small_as_their_file(platform, products):
    parts, _ = _parts()
    runs = products().pack(*_on(platform.device, parts))
    sizes = [run.n if isinstance(run, Fp8Weight) else -run.shape[0] for run in runs]
    # A block of scales may go on after 128 rows, not after 184; rows that no kernel takes are widened.
    assert sizes == [64, 184, 136, -28]
    assert all(run.matrix.codes.element_size() == 1 for run in runs if isinstance(run, Fp8Weight))


@pytest.mark.parametrize(("scaling", "k"), [("rows", 144), ("blocks", 256)])
def test_codes_meet_codes_of_rows_or_of_blocks(platform, products, scaling, k):
    x, wide, bias = wide_operands(5, 136, k)
    part = stored_matrix(wide, scaling)
    made = products("codes")
    on, added = x.to(platform.device), bias.to(platform.device)
    found = made.linear(on, made.pack(part), added)
    exact = activation_values(quantise_rows(x, scaling)) @ values_of(part).t() + bias.double()
    assert distance(found, exact) < ROUNDING
    for row in range(5):
        assert same_bits(made.linear(on[row : row + 1], made.pack(part), added), found[row : row + 1])


def test_a_scale_of_the_file_makes_the_codes_of_rows_and_keeps_parts_apart(platform, products):
    x, wide, _ = wide_operands(3, 48, 64)
    scales = [0.02, 0.02, 0.05]
    parts = [stored_matrix(part, "rows", scale) for part, scale in zip(wide.split(16), scales, strict=True)]
    made = products("codes")
    weight = made.pack(*parts)
    assert [run.n for run in weight] == [32, 16]
    exact = torch.cat(
        [
            quantise_rows(x, "tensor", torch.tensor([scale])).codes.double() * scale @ values_of(part).t()
            for part, scale in zip(parts, scales, strict=True)
        ],
        dim=1,
    )
    assert distance(made.linear(x.to(platform.device), weight, None), exact) < ROUNDING


def test_blocks_that_end_within_a_row_meet_bfloat16(platform, products):
    x, wide, _ = wide_operands(3, 16, 144)
    part = stored_matrix(wide, "blocks")
    [weight] = products("codes").pack(part)
    assert weight.rows == "bfloat16"
    found = products("codes").linear(x.to(platform.device), (weight,), None)
    assert distance(found, x.double() @ values_of(part).t()) < ROUNDING


@pytest.mark.parametrize("rows", ["codes", "bfloat16"])
def test_matrices_in_bfloat16_become_codes_where_that_is_asked_for(platform, products, rows):
    x, wide, _ = wide_operands(4, 24, 48)
    made = products(rows, quantises=True)
    weight = made.pack(wide.bfloat16().to(platform.device), wide[:4].bfloat16().to(platform.device))
    codes = quantise_weight(wide.bfloat16(), "rows")
    assert same_bits(weight[0].matrix.codes.cpu(), codes.codes)
    assert isinstance(weight[1], torch.Tensor)
    met = activation_values(quantise_rows(x, "rows")) if rows == "codes" else x.double()
    exact = torch.cat([met @ weight_values(codes).t(), x.double() @ wide[:4].bfloat16().double().t()], dim=1)
    assert distance(made.linear(x.to(platform.device), weight, None), exact) < ROUNDING


@pytest.mark.parametrize("scaling", ["rows", "blocks"])
def test_what_is_widened_is_the_rounded_product_of_code_and_scale(scaling):
    wide = wide_operands(1, 136, 144)[1]
    codes = quantise_weight(wide, scaling)
    spread = (
        codes.scales[:, None]
        if scaling == "rows"
        else codes.scales.repeat_interleave(128, 0)[:136].repeat_interleave(128, 1)[:, :144]
    )
    assert same_bits(in_bfloat16(codes), (codes.codes.float() * spread).bfloat16())
    assert in_bfloat16(Fp8Matrix(codes.codes, codes.scales, scaling)).shape == (136, 144)


def test_only_hopper_with_both_kernels_multiplies_codes_with_codes():
    both = SimpleNamespace(has=lambda name: True)
    one = SimpleNamespace(has=lambda name: name == "gemm_fp8_sm90")
    assert rows_that_codes_meet(both, (9, 0), wants_bfloat16=False) == "codes"
    assert rows_that_codes_meet(both, (9, 0), wants_bfloat16=True) == "bfloat16"
    assert rows_that_codes_meet(one, (9, 0), wants_bfloat16=False) == "bfloat16"
    assert rows_that_codes_meet(both, (8, 0), wants_bfloat16=False) == "bfloat16"


def test_a_matrix_of_another_kind_is_refused_by_name(products):
    other = stored_matrix(wide_operands(1, 16, 32)[1], "rows")
    with pytest.raises(SpliceError, match="part is of kind q8_0, expected fp8_blocks or fp8_rows"):
        products().pack(QuantizedMatrix("q8_0", other.shape, other.blocks))


def test_the_name_says_which_arithmetic_it_is(products):
    names = {products(rows, quantises=each).name for rows in ("codes", "bfloat16") for each in (False, True)}
    assert names == {"cuda_fp8", "cuda_fp8_weights", "cuda_fp8_quantised_here", "cuda_fp8_weights_quantised_here"}
