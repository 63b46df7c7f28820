"""Triton's norms and gates, in its interpreter and on a GPU: equal to the reference, and to themselves in any company.

The interpreter cuts float32 off where hardware rounds it to bfloat16: its results may be a last place away.
"""

from __future__ import annotations

import pytest
import torch
from closeness import distance, same_bits

from wire.errors import SpliceError

triton = pytest.importorskip("triton", reason="Triton is not installed")
rows_module = pytest.importorskip("engine.ops.triton.rows")
SIZES = (1, 8, 100, 576, 1000, 1025)
ROUNDING, CUT = 4e-3, 8e-3
"""Relative error of one rounding to bfloat16, and of one cut."""


@pytest.fixture(params=["interpreted", pytest.param("gpu", marks=pytest.mark.gpu)])
def rows(request):
    """The kernels and their device. Triton is the one or the other for a whole process: see tests/conftest.py."""
    has_gpu = torch.cuda.is_available()
    if request.param == "gpu" and not has_gpu:
        pytest.skip("torch sees no GPU")
    if request.param == "interpreted" and has_gpu:
        pytest.skip("in this process Triton compiles for the GPU")
    assert has_gpu or isinstance(triton.language.sum, triton.runtime.interpreter.InterpretedFunction), (
        "Triton was imported before TRITON_INTERPRET was set"
    )
    return rows_module, torch.device("cuda" if has_gpu else "cpu")


def _drawn(device: torch.device, *shape: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(shape, generator=generator) * scale).bfloat16().to(device)


def _allowed(device: torch.device) -> float:
    return ROUNDING if device.type == "cuda" else CUT


@pytest.mark.parametrize("size", SIZES)
def test_triton_norms_are_the_exact_ones_rounded_and_update_the_residual(rows, size):
    module, device = rows
    x, residual, weight = _drawn(device, 3, size, scale=3.0), _drawn(device, 4, size)[:3], _drawn(device, size)
    total = x + residual
    found, updated = module.add_rms_norm(x, residual, weight, 1e-5)
    assert updated is residual
    if device.type == "cuda":
        assert same_bits(updated, total)
    assert ((updated.double() - total.double()).abs() <= total.double().abs() * 2**-7).all()
    wide = updated.double()
    exact = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert distance(found, exact) < 2 * _allowed(device)
    assert ((found.double() - exact).abs() <= exact.abs() * 2**-6).all()


@pytest.mark.parametrize("size", SIZES)
def test_triton_gates_are_the_exact_ones_rounded(rows, size):
    module, device = rows
    gate_up = _drawn(device, 3, 2 * size, scale=4.0)
    gate, up = gate_up.double().chunk(2, dim=-1)
    assert distance(module.silu_mul(gate_up), torch.nn.functional.silu(gate) * up) < _allowed(device)


def test_a_row_has_the_same_bits_for_triton_in_any_company(rows):
    module, device = rows
    x, residual, weight = _drawn(device, 5, 576), _drawn(device, 6, 576)[:5], _drawn(device, 576)
    gate_up = _drawn(device, 5, 2 * 1500)
    normed, gated = module.add_rms_norm(x, residual.clone(), weight, 1e-6)[0], module.silu_mul(gate_up)
    for row in range(5):
        one = slice(row, row + 1)
        assert same_bits(module.add_rms_norm(x[one], residual[one].clone(), weight, 1e-6)[0], normed[one])
        assert same_bits(module.silu_mul(gate_up[one]), gated[one])


def test_triton_takes_rows_with_gaps_and_none_at_all(rows):
    module, device = rows
    wide, weight = _drawn(device, 4, 192), _drawn(device, 64)
    part, zeros = wide[:, 64:128], torch.zeros(4, 64, dtype=torch.bfloat16, device=device)
    strided = module.add_rms_norm(part, zeros.clone(), weight, 1e-6)[0]
    assert same_bits(strided, module.add_rms_norm(part.contiguous(), zeros, weight, 1e-6)[0])
    assert same_bits(module.silu_mul(part), module.silu_mul(part.contiguous()))
    assert module.add_rms_norm(part[:0], zeros[:0], weight, 1e-6)[0].shape == (0, 64)
    assert module.silu_mul(part[:0]).shape == (0, 32)


def test_what_triton_cannot_take_is_refused_by_name(rows):
    module, device = rows
    x, residual, weight = _drawn(device, 2, 64), _drawn(device, 3, 64)[:2], _drawn(device, 64)
    for arguments, said in (
        ((x.float(), residual, weight), "x is of torch.float32"),
        ((x, residual[:1], weight), "residual is of shape"),
        ((x, residual, weight.float()), "weight is of torch.float32"),
        ((x[:, ::2], residual, weight), "x is strided"),
    ):
        with pytest.raises(SpliceError, match=said):
            module.add_rms_norm(*arguments, 1e-6)
    with pytest.raises(SpliceError, match="expected 1 to 32768"):
        module.add_rms_norm(_drawn(device, 1, 32769), _drawn(device, 1, 32769), _drawn(device, 32769), 1e-6)
    with pytest.raises(SpliceError, match="expected an even number"):
        module.silu_mul(_drawn(device, 1, 3))
