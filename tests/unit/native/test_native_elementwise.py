"""Norms, the gate and rotary embedding: right against float64, the same bits on every machine."""

from __future__ import annotations

import pytest
import torch

from engine._native import Kernels
from engine.ops import reference
from engine.ops.native import NativeOps

SIZES = [1, 7, 16, 31, 64, 577, 1000]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_rms_norm(ops: NativeOps, best_ops: NativeOps, size: int, weight_dtype: torch.dtype) -> None:
    x, weight = torch.randn(9, size) * 3, torch.randn(size).to(weight_dtype)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    out = ops.rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=0)
    assert torch.equal(out, best_ops.rms_norm(x, weight, 1e-5))
    assert torch.equal(out[3:4], ops.rms_norm(x[3:4], weight, 1e-5))


@pytest.mark.parametrize("size", SIZES)
def test_add_rms_norm_is_the_norm_of_the_sum(ops: NativeOps, size: int) -> None:
    x, residual, weight = torch.randn(5, size), torch.randn(5, size), torch.randn(size)
    total = x + residual
    out, stream = ops.add_rms_norm(x, residual.clone(), weight, 1e-6)
    assert torch.equal(stream, total)
    assert torch.equal(out, ops.rms_norm(total, weight, 1e-6))


@pytest.mark.parametrize("size", SIZES)
def test_gated_mul(ops: NativeOps, best_ops: NativeOps, size: int) -> None:
    gate_up = torch.randn(6, 2 * size) * 8
    wide = gate_up.double()
    expected = wide[:, :size] * wide[:, :size].sigmoid() * wide[:, size:]
    out = ops.gated_mul(gate_up, "silu")
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=1e-35)
    assert torch.equal(out, best_ops.gated_mul(gate_up, "silu"))
    assert torch.equal(out[2:3], ops.gated_mul(gate_up[2:3], "silu"))


@pytest.mark.parametrize("size", SIZES)
def test_gelu(ops: NativeOps, best_ops: NativeOps, size: int) -> None:
    gate_up = torch.randn(6, 2 * size) * 4
    wide = gate_up.double()
    expected = torch.nn.functional.gelu(wide[:, :size], approximate="tanh") * wide[:, size:]
    out = ops.gated_mul(gate_up, "gelu_tanh")
    torch.testing.assert_close(out.double(), expected, rtol=2e-5, atol=1e-6)
    assert torch.equal(out, best_ops.gated_mul(gate_up, "gelu_tanh"))
    assert torch.equal(out[2:3], ops.gated_mul(gate_up[2:3], "gelu_tanh"))


def test_silu_of_extreme_values_is_finite_and_nan_stays_nan(ops: NativeOps) -> None:
    gate = torch.tensor([[-1e30, -200.0, -90.0, 0.0, 90.0, 200.0, 1e30, float("nan")]])
    out = ops.gated_mul(torch.cat([gate, torch.ones_like(gate)], 1), "silu")[0]
    assert out[-1].isnan()
    torch.testing.assert_close(out[:-1], torch.nn.functional.silu(gate[0, :-1]), rtol=1e-6, atol=1e-7 * 1e0)


@pytest.mark.parametrize("head_dim", [2, 8, 64, 80, 128])
@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.bfloat16])
def test_rope_and_store(ops: NativeOps, best_ops: NativeOps, head_dim: int, kv_dtype: torch.dtype) -> None:
    tokens, heads, kv_heads = 11, 6, 2
    fused = torch.randn(tokens, heads + 2 * kv_heads, head_dim)
    q, k, v = fused[:, :heads], fused[:, heads : heads + kv_heads], fused[:, heads + kv_heads :]
    positions = torch.randint(0, 50, (tokens,))
    angles = torch.rand(50, head_dim // 2) * 6
    cos_sin = torch.cat([angles.cos(), angles.sin()], 1)
    slots = torch.randperm(4 * 32)[:tokens]
    caches = [torch.full((4, 3, 2, kv_heads, 32, head_dim), 7.0).to(kv_dtype) for _ in range(3)]
    out = ops.rope_and_store(q, k, v, positions, cos_sin, caches[0], 1, slots)
    again = best_ops.rope_and_store(q, k, v, positions, cos_sin, caches[1], 1, slots)
    exact = reference.rope_and_store(
        q.double(), k.double(), v.double(), positions, cos_sin.double(), caches[2], 1, slots
    )
    assert torch.equal(out, again)
    assert torch.equal(caches[0], caches[1])
    torch.testing.assert_close(out.double(), exact.double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(caches[0], caches[2], rtol=2**-7 if kv_dtype == torch.bfloat16 else 0, atol=1e-6)
    one = ops.rope_and_store(q[4:5], k[4:5], v[4:5], positions[4:5], cos_sin, caches[0], 1, slots[4:5])
    assert torch.equal(one[0], out[4])


def test_places_outside_table_or_cache_are_refused() -> None:
    ops = NativeOps(Kernels())
    cache, table = torch.zeros(2, 1, 2, 1, 32, 8), torch.zeros(10, 8)
    heads = torch.zeros(1, 1, 8)
    for position, slot, message in ((10, 0, "position"), (-1, 0, "position"), (0, 64, "slot")):
        with pytest.raises(ValueError, match=message):
            ops.rope_and_store(heads, heads, heads, torch.tensor([position]), table, cache, 0, torch.tensor([slot]))
    with pytest.raises(ValueError, match="layer"):
        ops.rope_and_store(heads, heads, heads, torch.tensor([0]), table, cache, 1, torch.tensor([0]))


def test_threads_change_no_bit_and_can_be_changed_at_any_time() -> None:
    ops = NativeOps(Kernels())
    x, weight = torch.randn(37, 100), torch.randn(100)
    expected = ops.rms_norm(x, weight, 1e-5), ops.gated_mul(x, "silu")
    for threads in (2, 5, 1, 3):
        ops.set_num_threads(threads)
        for _ in range(50):
            assert torch.equal(ops.rms_norm(x, weight, 1e-5), expected[0])
            assert torch.equal(ops.gated_mul(x, "silu"), expected[1])
    with pytest.raises(ValueError, match="num_threads"):
        ops.set_num_threads(0)
