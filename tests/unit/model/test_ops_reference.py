"""The reference operations compute what their signatures say, and one candidate of each is chosen per process."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch

from engine.ops import reference
from engine.ops.candidate import Candidate
from engine.ops.features import used_ops
from engine.ops.names import OP_NAMES
from engine.ops.registry import choose, select_ops
from wire.errors import ErrorCode, SpliceError


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 70])
def test_linear_and_silu_match_float64(rows: int) -> None:
    x, weight, bias = _random(rows, 50), _random(26, 50, seed=1), _random(26, seed=2)
    product = x.double() @ weight.double().t() + bias.double()
    assert torch.allclose(reference.linear(x, weight, bias).double(), product, atol=1e-4)
    gate, up = product.chunk(2, dim=1)
    expected = gate * torch.sigmoid(gate) * up
    assert torch.allclose(reference.gated_mul(product.float(), "silu").double(), expected, atol=1e-4)


def test_bfloat16_logits_are_float32() -> None:
    x, weight = _random(3, 64).bfloat16(), _random(9000, 64, seed=1).bfloat16()
    logits = reference.lm_head(x, weight)
    assert logits.dtype == torch.float32
    assert torch.allclose(logits.double(), x.double() @ weight.double().t(), atol=1e-4)


def test_add_rms_norm_matches_float64() -> None:
    x, residual, weight = _random(5, 40), _random(5, 40, seed=1), _random(40, seed=2)
    normed, total = reference.add_rms_norm(x, residual, weight, 1e-5)
    wide = x.double() + residual.double()
    expected = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert torch.allclose(normed.double(), expected, atol=1e-5)
    assert torch.equal(total, x + residual)


def test_ragged_attention_matches_float64_and_reads_no_garbage() -> None:
    heads, kv_heads, dim, block_tokens = 6, 2, 8, 32
    lengths, queries = [1, 32, 70, 97], [1, 5, 40, 1]
    cache = torch.full((20, 3, 2, kv_heads, block_tokens, dim), torch.nan)
    tables = torch.arange(4 * 4, dtype=torch.int32).flip(0).view(4, 4)
    dense = _random(4, 2, kv_heads, 128, dim)
    for s, length in enumerate(lengths):
        for position in range(length):
            block = int(tables[s, position // block_tokens])
            cache[block, 1, :, :, position % block_tokens] = dense[s, :, :, position]
    q = _random(sum(queries), heads, dim, seed=5)
    bounds = [0, 1, 6, 46, 47]
    starts = torch.tensor([n - m for n, m in zip(lengths, queries, strict=True)], dtype=torch.int32)
    found = reference.paged_attention(q, cache, 1, tables, torch.tensor(bounds, dtype=torch.int32), starts, 0.3)
    for s, first in enumerate(bounds[:-1]):
        for row in range(first, bounds[s + 1]):
            seen = int(starts[s]) + row - first + 1
            for head in range(heads):
                keys, values = dense[s, :, head // 3, :seen].double()
                weights = (keys @ q[row, head].double() * 0.3).softmax(0)
                assert torch.allclose(found[row, head].double(), weights @ values, atol=1e-5)


def test_rope_turns_pairs_of_halves_and_stores_at_the_slots() -> None:
    q, k, v = _random(2, 3, 4), _random(2, 1, 4, seed=1), _random(2, 1, 4, seed=2)
    angles = torch.outer(torch.arange(9.0), torch.tensor([1.0, 0.5]))
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1)
    cache = torch.zeros(3, 2, 2, 1, 4, 4)
    positions, slots = torch.tensor([0, 8]), torch.tensor([9, 2])
    rotated = reference.rope_and_store(q, k, v, positions, cos_sin, cache, 1, slots)
    assert torch.equal(rotated[0], q[0])
    pair = torch.complex(k[1, 0, :2].double(), k[1, 0, 2:].double()) * torch.exp(1j * angles[8].double())
    assert torch.allclose(cache[0, 1, 0, 0, 2].double(), torch.cat((pair.real, pair.imag)), atol=1e-5)
    assert torch.equal(cache[2, 1, 1, 0, 1], v[0, 0])
    assert int(cache.count_nonzero()) == 16


def test_the_best_supported_candidate_wins_and_brings_its_packing() -> None:
    base = list(reference.CANDIDATES)
    linear = next(candidate for candidate in base if candidate.op == "linear")
    fast = dataclasses.replace(linear, name="fast", rank=5, supports=lambda d: d == torch.float32, pack=torch.neg)
    weight = torch.ones(2, 2)
    for order in ([fast, *base], [*base, fast]):
        table = choose(order, torch.float32)
        assert table.names["linear"] == "fast"
        assert torch.equal(table.pack_linear(weight), -weight)
        assert choose(order, torch.bfloat16).names["linear"] == "torch"


def test_an_operation_nobody_supports_is_a_typed_error() -> None:
    with pytest.raises(SpliceError, match="linear") as caught:
        choose(reference.CANDIDATES, torch.float16)
    assert caught.value.code is ErrorCode.MISSING_PART


def test_missing_native_kernels_are_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "engine.ops.native", None)
    with caplog.at_level(logging.WARNING):
        table = select_ops(torch.float32)
    assert set(table.names) == set(used_ops(frozenset()))
    assert set(table.names.values()) == {"torch"}
    assert "native kernels are not built" in caplog.text


def test_operations_a_model_is_not_made_of_are_no_part_of_its_identity() -> None:
    experts = choose(reference.CANDIDATES, torch.float32, frozenset({"experts"})).names
    latent = choose(reference.CANDIDATES, torch.float32, frozenset({"latent_attention"})).names
    assert set(experts) - set(used_ops(frozenset())) == {"route", "experts"}
    assert set(latent) - set(used_ops(frozenset())) == {"store_latents", "latent_attention"}
    assert set(experts) | set(latent) == set(OP_NAMES)


def test_every_operation_has_a_reference() -> None:
    assert {candidate.op for candidate in reference.CANDIDATES if isinstance(candidate, Candidate)} == set(OP_NAMES)
