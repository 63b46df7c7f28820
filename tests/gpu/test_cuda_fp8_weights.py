"""Products with weights in e4m3 codes: the exact ones, and a row's bits the same whatever M and whichever tile."""

from __future__ import annotations

import pytest
import torch
from closeness import distance, same_bits
from fp8_cases import ROUNDING, SCALINGS, on_device, wide_operands

from engine.ops.cuda.fp8 import GemmFp8, gemm_fp8, gemm_fp8_weights
from engine.ops.cuda.fp8_reference import Fp8Matrix, quantise_rows, quantise_weight, to_codes, weight_values
from wire.errors import SpliceError

SHAPES = [(1, 8, 16), (3, 40, 144), (17, 136, 256), (66, 136, 272)]


@pytest.mark.parametrize("tile", [0, 1])
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_products_with_weights_in_codes_are_the_exact_ones(platform, tile, scaling, m, n, k):
    x, w, bias = wide_operands(m, n, k)
    weight = quantise_weight(w, scaling)
    exact = x.double() @ weight_values(weight).t()
    x, bias, on = x.to(platform.device), bias.to(platform.device), on_device(weight, platform.device)
    assert distance(gemm_fp8_weights(platform.library, x, on, tile=tile), exact) < ROUNDING
    exact = exact + bias.double().cpu()
    found = gemm_fp8_weights(platform.library, x, on, bias, tile=tile)
    assert distance(found, exact) < ROUNDING
    worst = ((found.double().cpu() - exact).abs() - exact.abs() / 256).amax()
    assert worst < 1e-3 * exact.abs().amax()


def test_scales_may_be_a_part_of_others(platform):
    x, w, _ = wide_operands(3, 16, 32)
    weight = on_device(quantise_weight(w, "rows"), platform.device)
    part = Fp8Matrix(weight.codes, torch.cat([weight.scales[:1], weight.scales])[1:], "rows")
    x = x.to(platform.device)
    found = (gemm_fp8_weights(platform.library, x, matrix, tile=0) for matrix in (weight, part))
    assert same_bits(*found)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_row_has_the_same_bits_alone_in_any_tile_and_order_of_threads(platform, reseeded, scaling):
    x, w, bias = wide_operands(70, 48, 272)
    wide = torch.cat([x, x], 1)[:, :272].to(platform.device)
    weight, bias = on_device(quantise_weight(w, scaling), platform.device), bias.to(platform.device)
    together = gemm_fp8_weights(platform.library, wide, weight, bias, tile=1)
    for tile, first, count in ((0, 0, 70), (0, 69, 1), (1, 17, 40), (1, 5, 1)):
        reseeded(tile + first)
        part = gemm_fp8_weights(platform.library, wide[first : first + count], weight, bias, tile=tile)
        assert same_bits(part, together[first : first + count]), (tile, first, count)


def test_every_code_of_a_weight_counts_as_what_it_is(platform):
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    codes = torch.where(codes.float().isnan(), torch.zeros(256), codes.float()).to(torch.float8_e4m3fn)
    weight = Fp8Matrix(codes.view(16, 16).to(platform.device), torch.ones(1, device=platform.device), "tensor")
    x = torch.eye(16, dtype=torch.bfloat16, device=platform.device)
    found = gemm_fp8_weights(platform.library, x, weight, tile=0)
    assert torch.equal(found.float().cpu(), codes.view(16, 16).float().t())


def test_a_weight_that_is_no_number_is_seen_in_its_column_alone(platform):
    x, w, _ = wide_operands(3, 16, 32)
    weight = on_device(quantise_weight(w, "rows"), platform.device)
    weight.codes.view(torch.uint8)[5, 9] = 0xFF
    found = gemm_fp8_weights(platform.library, x.to(platform.device), weight, tile=0)
    assert bool(found[:, 5].isnan().all())
    assert int(found.isnan().sum()) == 3


def test_products_of_codes_no_kernel_takes_are_refused_by_name(platform):
    x, w, bias = (part.to(platform.device) for part in wide_operands(4, 16, 128))
    weight, library = on_device(quantise_weight(w.cpu(), "rows"), platform.device), platform.library
    codes = on_device(quantise_rows(x.cpu(), "rows"), platform.device)
    for call in (
        lambda: gemm_fp8_weights(library, x, Fp8Matrix(weight.codes, weight.scales[:8], "rows"), tile=0),
        lambda: gemm_fp8(library, codes, Fp8Matrix(weight.codes, weight.scales[:8], "rows"), tile=0),
    ):
        with pytest.raises(SpliceError, match=r"w_scales is of shape \(8,\), expected \[16\]"):
            call()
    with pytest.raises(SpliceError, match=r"weight is of torch.bfloat16, expected torch.float8_e4m3fn"):
        gemm_fp8_weights(library, x, Fp8Matrix(w.bfloat16(), weight.scales, "rows"), tile=0)
    with pytest.raises(SpliceError, match=r"x is of shape \(4, 64\), expected \[any, 128\]"):
        gemm_fp8_weights(library, x[:, :64].contiguous(), weight, tile=0)
    with pytest.raises(SpliceError, match=r"bias is of torch.float32"):
        gemm_fp8_weights(library, x, weight, bias.float(), tile=0)
    with pytest.raises(SpliceError, match="tile 2, expected 0 to 1"):
        gemm_fp8_weights(library, x, weight, tile=2)
    with pytest.raises(SpliceError, match="scales of blocks in both or neither, x has rows"):
        gemm_fp8(library, codes, on_device(quantise_weight(w.cpu(), "blocks"), platform.device), tile=0)
    with pytest.raises(SpliceError, match="scaling is 'columns', expected one of tensor, rows, blocks"):
        Fp8Matrix(weight.codes, weight.scales, "columns")
    with pytest.raises(SpliceError, match=r"weight is of shape \(16, 1, 128\), expected \[any, any\]"):
        gemm_fp8_weights(library, x, Fp8Matrix(weight.codes[:, None], weight.scales, "rows"), tile=0)
    with pytest.raises(SpliceError, match="multiples of 16 along k"):
        library.call("gemm_fp8_weights", GemmFp8(m=1, n=16, k=24))


def test_the_reference_holds_what_it_rounds_within_the_largest_code():
    found = to_codes(torch.tensor([1e9, -1e9, float("inf"), 447.0])).float()
    assert found.tolist() == [448.0, -448.0, 448.0, 448.0]
