"""Rows to e4m3 codes: the reference's codes and scales, and from fused kernels those of the operations in turn."""

from __future__ import annotations

import pytest
import torch
from closeness import same_bits
from fp8_cases import SCALINGS

from engine.ops.cuda.fp8 import gated_mul_fp8, quantise_rows, rms_norm_fp8
from engine.ops.cuda.fp8_reference import activation_values
from engine.ops.cuda.fp8_reference import quantise_rows as quantise_rows_reference
from engine.ops.cuda.rows import add_rms_norm, gated_mul, rms_norm
from wire.errors import SpliceError

SIZES = (128, 384, 4096, 8320, 14336)


@pytest.fixture
def scale_of(platform):
    """What goes with a scaling: a scale of about the right size, or none."""
    one = torch.tensor([0.0173], device=platform.device)
    return lambda scaling: one if scaling == "tensor" else None


def _same(found, expected) -> bool:
    codes = same_bits(found.codes, expected.codes)
    return codes and found.scaling == expected.scaling and same_bits(found.scales, expected.scales)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("size", SIZES)
def test_rows_become_the_codes_of_the_reference(platform, drawn, scale_of, scaling, size):
    x = drawn(platform.pick(3, 257), size, scale=3.0)
    found = quantise_rows(platform.library, x, scaling, scale_of(scaling))
    assert _same(found, quantise_rows_reference(x, scaling, scale_of(scaling)))


@pytest.mark.parametrize("scale", [1.0, 0.3, 1e-3])
def test_every_bfloat16_becomes_the_code_of_the_reference(platform, scale):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).short().view(torch.bfloat16).view(32, 2048)
    one = torch.tensor([scale], device=platform.device)
    found = quantise_rows(platform.library, every.to(platform.device), "tensor", one).codes.cpu()
    expected = quantise_rows_reference(every, "tensor", one.cpu()).codes
    numbers = ~every.isnan()
    assert torch.equal(found.float().isnan(), every.isnan())
    assert torch.equal(found.view(torch.uint8)[numbers], expected.view(torch.uint8)[numbers])


@pytest.mark.parametrize("scaling", ["rows", "blocks"])
def test_codes_are_within_half_a_step_of_what_they_stand_for(platform, drawn, scaling):
    powers = torch.exp2(torch.randint(-20, 20, (5, 1), generator=torch.Generator().manual_seed(1)))
    x = (drawn(5, 640) * powers.to(platform.device)).bfloat16()
    found = quantise_rows(platform.library, x, scaling)
    error = (activation_values(found) - x.double()).abs()
    spread = found.scales.double()
    step = spread[:, None] if scaling == "rows" else spread.t().repeat_interleave(128, 1)
    assert bool((error <= torch.maximum(x.double().abs() / 16, step * 2.0**-10) * (1 + 1e-6)).all())


def test_sixteen_columns_are_enough_but_for_blocks(platform, drawn):
    x = drawn(2, 48)
    assert _same(quantise_rows(platform.library, x, "rows"), quantise_rows_reference(x, "rows"))
    with pytest.raises(SpliceError, match="multiple of 128"):
        quantise_rows(platform.library, x, "blocks")


@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_row_has_the_same_codes_in_any_company_and_order_of_threads(platform, drawn, reseeded, scale_of, scaling):
    wide = drawn(5, 4096)
    x = wide[:, 1024:3072]
    together = quantise_rows(platform.library, x, scaling, scale_of(scaling))
    for row in range(5):
        reseeded(row + 1)
        alone = quantise_rows(platform.library, x[row : row + 1], scaling, scale_of(scaling))
        assert same_bits(alone.codes, together.codes[row : row + 1])
        if scaling != "tensor":
            assert same_bits(alone.scales, together.scales[..., row : row + 1])


def test_rows_of_zeros_are_zeros_and_what_is_too_large_is_held(platform):
    x = torch.zeros(2, 128, dtype=torch.bfloat16, device=platform.device)
    found = quantise_rows(platform.library, x, "rows")
    assert bool((found.codes.float() == 0).all())
    assert bool((found.scales > 0).all())
    x[0, :4] = torch.tensor([500.0, -3e38, float("inf"), 447.0])
    found = quantise_rows(platform.library, x, "tensor", torch.ones(1, device=platform.device))
    assert found.codes.float()[0, :4].tolist() == [448.0, -448.0, 448.0, 448.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("scaling", ["rows", "blocks"])
def test_what_is_not_finite_is_seen_in_all_that_share_its_scale(platform, drawn, scaling, bad):
    x = drawn(2, 384)
    x[0, 130] = bad
    values = activation_values(quantise_rows(platform.library, x, scaling))
    hit = values[0] if scaling == "rows" else values[0, 128:256]
    assert bool(hit.isnan().all())
    assert int(values.isnan().sum()) == hit.numel()


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(("size", "dtype"), [(128, torch.bfloat16), (4096, torch.float32), (8320, torch.bfloat16)])
def test_a_fused_norm_gives_the_codes_of_norm_then_codes(platform, drawn, scale_of, scaling, size, dtype):
    x, residual, weight = drawn(3, size), drawn(3, size), drawn(size, dtype=dtype)
    scale, library = scale_of(scaling), platform.library
    alone = rms_norm_fp8(library, x, weight, 1e-5, scaling, scale=scale)
    assert _same(alone, quantise_rows(library, rms_norm(library, x, weight, 1e-5), scaling, scale))
    updated, also = residual.clone(), torch.full_like(x, torch.nan)
    fused = rms_norm_fp8(library, x, weight, 1e-5, scaling, residual=updated, scale=scale, y=also)
    normed, expected = add_rms_norm(library, x, residual, weight, 1e-5)
    assert same_bits(updated, expected)
    assert same_bits(also, normed)
    assert _same(fused, quantise_rows(library, normed, scaling, scale))


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "swiglu_oai"])
@pytest.mark.parametrize("size", [128, 4864])
def test_a_fused_gate_gives_the_codes_of_gate_then_codes(platform, drawn, scale_of, scaling, activation, size):
    gate_up, library = drawn(3, 2 * size, scale=4.0), platform.library
    also = torch.full((3, size), torch.nan, dtype=torch.bfloat16, device=platform.device)
    fused = gated_mul_fp8(library, gate_up, activation, scaling, scale=scale_of(scaling), y=also)
    gated = gated_mul(library, gate_up, activation)
    assert same_bits(also, gated)
    assert _same(gated_mul_fp8(library, gate_up, activation, scaling, scale=scale_of(scaling)), fused)
    assert _same(fused, quantise_rows(library, gated, scaling, scale_of(scaling)))


def test_no_rows_are_no_codes(platform, drawn):
    found = quantise_rows(platform.library, drawn(0, 128), "blocks")
    assert found.codes.shape == (0, 128)
    assert found.scales.shape == (1, 0)


def test_rows_no_kernel_takes_are_refused_by_name(platform, drawn):
    library, x = platform.library, drawn(2, 128)
    one = torch.ones(1, device=platform.device)
    with pytest.raises(SpliceError, match="scale is missing"):
        quantise_rows(library, x, "tensor")
    with pytest.raises(SpliceError, match="scale is given"):
        quantise_rows(library, x, "rows", one)
    with pytest.raises(SpliceError, match=r"scale is of torch.float64, expected torch.float32"):
        quantise_rows(library, x, "tensor", one.double())
    with pytest.raises(SpliceError, match="scaling is 'columns'"):
        quantise_rows(library, x, "columns")
    with pytest.raises(SpliceError, match=r"x is of torch.float32, expected torch.bfloat16"):
        quantise_rows(library, x.float(), "rows")
    with pytest.raises(SpliceError, match="expected a multiple of 16, at most 32768"):
        quantise_rows(library, drawn(1, 40), "rows")
    with pytest.raises(SpliceError, match="at most 32768"):
        quantise_rows(library, drawn(1, 32896), "blocks")
    with pytest.raises(SpliceError, match=r"residual is of shape \(1, 128\)"):
        rms_norm_fp8(library, x, drawn(128), 1e-5, "rows", residual=drawn(1, 128))
    with pytest.raises(SpliceError, match=r"y is of torch.float32, expected torch.bfloat16"):
        rms_norm_fp8(library, x, drawn(128), 1e-5, "rows", y=x.float())
    with pytest.raises(SpliceError, match="activation is 'relu'"):
        gated_mul_fp8(library, drawn(2, 256), "relu", "rows")
