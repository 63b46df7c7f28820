"""A KV cache in int8: what is stored is the documented rounding, what is read is attention over it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from paged_batches import PagedBatch, attention_float64, make_batch

from engine.ops.native import NativeOps

RAGGED = [(0, 1), (31, 1), (0, 33), (5, 40), (100, 17)]
SHAPES = [(9, 3, 64, 32), (4, 4, 16, 32), (6, 2, 8, 16), (2, 1, 72, 48)]


def rounded(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quants and scales `[..., 1]` of the last axis."""
    largest = values.abs().amax(-1, keepdim=True)
    return (values * (127.0 / largest)).round().to(torch.int8), largest / 127.0


def as_int8(cache: torch.Tensor) -> torch.Tensor:
    """`[blocks, layers, 2, heads, tokens, dim]` float32 as bytes `[..., tokens * (dim + 4)]`."""
    quants, scales = rounded(cache.nan_to_num(nan=1.0))
    scales = torch.where(cache.isnan().any(-1, keepdim=True), torch.nan, scales)
    return torch.cat([quants.view(torch.uint8).flatten(-2), scales.contiguous().view(torch.uint8).flatten(-2)], dim=-1)


def int8_batch(shape: tuple[int, int, int, int]) -> tuple[PagedBatch, PagedBatch]:
    """In int8, and with the float32 values it stands for."""
    heads, kv_heads, head_dim, block_tokens = shape
    batch = make_batch(RAGGED, heads=heads, kv_heads=kv_heads, head_dim=head_dim, block_tokens=block_tokens)
    quants, scales = rounded(batch.kv_cache)
    exact = torch.where(batch.kv_cache.isnan(), torch.nan, quants.float() * scales)
    return replace(batch, kv_cache=as_int8(batch.kv_cache)), replace(batch, kv_cache=exact)


def attend(ops: NativeOps, batch: PagedBatch) -> torch.Tensor:
    tables = batch.block_tables, batch.query_starts, batch.starts
    return ops.paged_attention(batch.q, batch.kv_cache, 1, *tables, batch.q.shape[2] ** -0.5)


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_is_near_the_float64_one(
    ops: NativeOps, best_ops: NativeOps, shape: tuple[int, int, int, int]
) -> None:
    batch, exact = int8_batch(shape)
    found = attend(ops, batch)
    expected = attention_float64(exact, 1, batch.q.shape[2] ** -0.5)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=3e-6)
    assert torch.equal(found, attend(best_ops, batch))


def test_bits_do_not_depend_on_chunks(best_ops: NativeOps) -> None:
    batch, _ = int8_batch(SHAPES[0])
    expected = attend(best_ops, batch)
    first, last = int(batch.query_starts[3]), int(batch.query_starts[4])
    for row in range(first, last):
        one = replace(
            batch,
            q=batch.q[row : row + 1],
            block_tables=batch.block_tables[3:4],
            query_starts=torch.tensor([0, 1], dtype=torch.int32),
            starts=batch.starts[3:4] + (row - first),
        )
        assert torch.equal(attend(best_ops, one)[0], expected[row])


def test_keys_and_values_are_stored_rounded(ops: NativeOps) -> None:
    tokens, kv_heads, head_dim = 11, 2, 32
    q, k, v = (torch.randn(tokens, heads, head_dim) for heads in (4, kv_heads, kv_heads))
    v[3, 1] = 0.0
    v[4, 0, 5] = float("inf")
    positions, slots = torch.arange(tokens), torch.randperm(64)[:tokens]
    angles = torch.rand(20, head_dim // 2) * 6
    cos_sin = torch.cat([angles.cos(), angles.sin()], 1)
    plain = torch.full((2, 3, 2, kv_heads, 32, head_dim), 7.0)
    cache = torch.zeros(2, 3, 2, kv_heads, 32 * (head_dim + 4), dtype=torch.uint8)
    out = ops.rope_and_store(q, k, v, positions, cos_sin, cache, 1, slots)
    assert torch.equal(out, ops.rope_and_store(q, k, v, positions, cos_sin, plain, 1, slots))
    quants = cache[:, 1, :, :, : 32 * head_dim].contiguous().view(torch.int8).unflatten(-1, (32, head_dim))
    scales = cache[:, 1, :, :, 32 * head_dim :].contiguous().view(torch.float32)
    for slot in slots.tolist():
        block, offset = divmod(slot, 32)
        stored = plain[block, 1, :, :, offset]
        expected, scale = rounded(stored)
        usual = (stored.isfinite().all(-1) & (stored != 0).any(-1)).nonzero().tolist()
        for plane, head in usual:
            assert torch.equal(quants[block, plane, head, offset], expected[plane, head])
            assert scales[block, plane, head, offset] == scale[plane, head, 0]
    zero, bad = divmod(int(slots[3]), 32), divmod(int(slots[4]), 32)
    assert scales[zero[0], 1, 1, zero[1]] == 0
    assert scales[bad[0], 1, 0, bad[1]].isnan()
