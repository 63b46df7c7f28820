"""Norms and gates: equal to the reference, and to themselves in any company."""

from __future__ import annotations

import pytest
import torch
from closeness import distance, same_bits

from engine.ops import reference
from engine.ops.cuda.rows import add_rms_norm, gated_mul, rms_norm
from wire.errors import SpliceError

SIZES = (8, 64, 576, 1000, 4096, 8200, 14336)
ROUNDING = 4e-3
"""Relative error of one rounding to bfloat16."""


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rms_norm_is_the_exact_one_rounded(platform, drawn, size, dtype):
    x, weight = drawn(platform.pick(3, 257), size, scale=3.0), drawn(size, dtype=dtype)
    wide = x.double()
    exact = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert distance(rms_norm(platform.library, x, weight, 1e-5), exact) < ROUNDING


@pytest.mark.parametrize("size", SIZES)
def test_a_residual_is_added_first_and_updated(platform, drawn, size):
    x, residual, weight = drawn(2, size), drawn(2, size), drawn(size)
    total = x + residual
    normed, updated = add_rms_norm(platform.library, x, residual.clone(), weight, 1e-6)
    assert same_bits(updated, total)
    assert same_bits(normed, rms_norm(platform.library, total, weight, 1e-6))
    assert distance(normed, reference.rms_norm(total.cpu(), weight.cpu(), 1e-6)) < ROUNDING


def test_a_row_is_normed_alike_in_any_company_and_order_of_threads(platform, drawn, reseeded):
    x, weight = drawn(5, 4096), drawn(4096)
    together = rms_norm(platform.library, x, weight, 1e-6)
    for row in range(5):
        reseeded(row + 1)
        assert same_bits(rms_norm(platform.library, x[row : row + 1], weight, 1e-6), together[row : row + 1])


def test_rows_may_have_gaps_between_them(platform, drawn):
    wide, weight = drawn(4, 192), drawn(64)
    part = wide[:, 64:128]
    assert same_bits(
        rms_norm(platform.library, part, weight, 1e-6), rms_norm(platform.library, part.contiguous(), weight, 1e-6)
    )


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "swiglu_oai"])
@pytest.mark.parametrize("size", [8, 1000, 4864])
def test_gates_are_the_exact_ones_rounded(platform, drawn, activation, size):
    gate_up = drawn(platform.pick(3, 129), 2 * size, scale=4.0)
    gate, up = gate_up.double().chunk(2, dim=-1)
    if activation == "silu":
        exact = torch.nn.functional.silu(gate) * up
    elif activation == "gelu_tanh":
        exact = torch.nn.functional.gelu(gate, approximate="tanh") * up
    else:
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
        exact = gate * torch.sigmoid(1.702 * gate) * (up + 1)
    found = gated_mul(platform.library, gate_up, activation)
    assert distance(found, exact) < ROUNDING
    assert same_bits(gated_mul(platform.library, gate_up[1:2], activation), found[1:2])


def test_extreme_gates_are_finite(platform):
    gate_up = torch.tensor([[-300.0, 300.0, 0.0, -0.0, 88.0, -88.0, -104.0, 1e30] + [1.0] * 8])
    found = gated_mul(platform.library, gate_up.bfloat16().to(platform.device), "silu")
    assert bool(found.isfinite().all())


def test_what_a_kernel_cannot_take_is_refused_by_name(platform, drawn):
    x, weight = drawn(2, 64), drawn(64)
    for bad, name in (
        (x.float(), "x"),
        (x[:, ::2], "x"),
        (x[0], "x"),
        (drawn(3, 68)[:, 4:], "x"),
    ):
        with pytest.raises(SpliceError, match=f"{name} is"):
            rms_norm(platform.library, bad, weight, 1e-6)
    with pytest.raises(SpliceError, match=r"weight is of shape \(32,\), expected \[64\]"):
        rms_norm(platform.library, x, drawn(32), 1e-6)
    with pytest.raises(SpliceError, match="multiple of 16 bytes"):
        rms_norm(platform.library, drawn(1, 4), drawn(4), 1e-6)
    with pytest.raises(SpliceError, match="the size 8 to 32768"):
        rms_norm(platform.library, drawn(1, 40000), drawn(40000), 1e-6)
