"""A KV cache in int8 or fp8: what is stored is the documented rounding, what is read is attention over it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from paged_batches import PagedBatch, attention_float64, make_batch

from engine.ops import reference
from engine.ops.native import NativeOps

RAGGED = [(0, 1), (31, 1), (0, 33), (5, 40), (100, 17)]
SHAPES = [(9, 3, 64, 32), (4, 4, 16, 32), (6, 2, 8, 16), (2, 1, 72, 48)]
INT8, FP8 = torch.int8, torch.uint8
NUMBERS = {INT8: torch.int8, FP8: torch.float8_e4m3fn}
LARGEST = {INT8: 127.0, FP8: 448.0}
both_kinds = pytest.mark.parametrize("kind", [INT8, FP8], ids=["int8", "fp8"])


def rounded(values: torch.Tensor, kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers and scales `[..., 1]` of the last axis."""
    largest = values.abs().amax(-1, keepdim=True)
    wide = values * (LARGEST[kind] / largest)
    numbers = wide.round() if kind == INT8 else wide
    return numbers.to(NUMBERS[kind]), largest / LARGEST[kind]


def packed(cache: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    """`[blocks, layers, 2, heads, tokens, dim]` float32 as `[..., tokens * (dim + 4)]`."""
    numbers, scales = rounded(cache.nan_to_num(nan=1.0), kind)
    scales = torch.where(cache.isnan().any(-1, keepdim=True), torch.nan, scales)
    return torch.cat([numbers.view(kind).flatten(-2), scales.contiguous().view(kind).flatten(-2)], dim=-1)


def scaled_batch(shape: tuple[int, int, int, int], kind: torch.dtype) -> tuple[PagedBatch, PagedBatch]:
    """In 8 bits, and with the float32 values it stands for."""
    heads, kv_heads, head_dim, block_tokens = shape
    batch = make_batch(RAGGED, heads=heads, kv_heads=kv_heads, head_dim=head_dim, block_tokens=block_tokens)
    numbers, scales = rounded(batch.kv_cache, kind)
    exact = torch.where(batch.kv_cache.isnan(), torch.nan, numbers.float() * scales)
    return replace(batch, kv_cache=packed(batch.kv_cache, kind)), replace(batch, kv_cache=exact)


def attend(ops: NativeOps, batch: PagedBatch) -> torch.Tensor:
    tables = batch.block_tables, batch.query_starts, batch.starts
    return ops.paged_attention(batch.q, batch.kv_cache, 1, *tables, batch.q.shape[2] ** -0.5)


@both_kinds
@pytest.mark.parametrize("shape", SHAPES)
def test_attention_is_near_the_float64_one(
    ops: NativeOps, best_ops: NativeOps, shape: tuple[int, int, int, int], kind: torch.dtype
) -> None:
    batch, exact = scaled_batch(shape, kind)
    found = attend(ops, batch)
    expected = attention_float64(exact, 1, batch.q.shape[2] ** -0.5)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=3e-6)
    assert torch.equal(found, attend(best_ops, batch))


@both_kinds
def test_the_reference_reads_the_same_numbers(kind: torch.dtype) -> None:
    batch, exact = scaled_batch(SHAPES[0], kind)
    tables = batch.block_tables, batch.query_starts, batch.starts
    found = reference.paged_attention(batch.q, batch.kv_cache, 1, *tables, 0.125)
    assert torch.equal(found, reference.paged_attention(batch.q, exact.kv_cache, 1, *tables, 0.125))


@both_kinds
def test_bits_do_not_depend_on_chunks(best_ops: NativeOps, kind: torch.dtype) -> None:
    batch, _ = scaled_batch(SHAPES[0], kind)
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


@both_kinds
def test_keys_and_values_are_stored_rounded(ops: NativeOps, kind: torch.dtype) -> None:
    tokens, kv_heads, head_dim = 11, 2, 32
    q, k, v = (torch.randn(tokens, heads, head_dim) for heads in (4, kv_heads, kv_heads))
    v[3, 1] = 0.0
    v[4, 0, 5] = float("inf")
    v[5] *= torch.exp2(torch.randint(-24, 24, v[5].shape).float())  # fp8 reaches its subnormals and zero
    positions, slots = torch.arange(tokens), torch.randperm(64)[:tokens]
    angles = torch.rand(20, head_dim // 2) * 6
    cos_sin = torch.cat([angles.cos(), angles.sin()], 1)
    plain = torch.full((2, 3, 2, kv_heads, 32, head_dim), 7.0)
    cache = torch.zeros(2, 3, 2, kv_heads, 32 * (head_dim + 4), dtype=kind)
    out = ops.rope_and_store(q, k, v, positions, cos_sin, cache, 1, slots)
    assert torch.equal(out, ops.rope_and_store(q, k, v, positions, cos_sin, plain, 1, slots))
    numbers = cache[:, 1, :, :, : 32 * head_dim].contiguous().unflatten(-1, (32, head_dim))
    scales = cache[:, 1, :, :, 32 * head_dim :].contiguous().view(torch.float32)
    for slot in slots.tolist():
        block, offset = divmod(slot, 32)
        stored = plain[block, 1, :, :, offset]
        expected, scale = rounded(stored, kind)
        usual = (stored.isfinite().all(-1) & (stored != 0).any(-1)).nonzero().tolist()
        for plane, head in usual:
            assert torch.equal(numbers[block, plane, head, offset], expected.view(kind)[plane, head])
            assert scales[block, plane, head, offset] == scale[plane, head, 0]
    zero, bad = divmod(int(slots[3]), 32), divmod(int(slots[4]), 32)
    assert scales[zero[0], 1, 1, zero[1]] == 0
    assert scales[bad[0], 1, 0, bad[1]].isnan()


@both_kinds
def test_the_reference_stores_the_same_bytes(best_ops: NativeOps, kind: torch.dtype) -> None:
    tokens, kv_heads, head_dim = 40, 2, 24
    k, v = (torch.randn(tokens, kv_heads, head_dim) * 3 for _ in range(2))
    v[3, 1], v[4, 0, 5], v[5, 1, 2] = 0.0, float("inf"), float("nan")
    positions, slots = torch.arange(tokens), torch.randperm(64)[:tokens]
    still = torch.empty(tokens, 0)  # no rotation, which rounds otherwise in torch
    caches = []
    for ops in (best_ops, reference):
        cache = torch.zeros(2, 3, 2, kv_heads, 32 * (head_dim + 4), dtype=kind)
        ops.rope_and_store(k.clone(), k, v, positions, still, cache, 1, slots)
        caches.append(cache)
    for own, other in zip(*(cache.view(torch.uint8) for cache in caches), strict=True):
        assert torch.equal(own, other)


def test_every_number_of_e4m3_is_read_as_itself(ops: NativeOps) -> None:
    """One position of weight 1 gives its value: all 254 finite codes, as the values of a token."""
    codes = torch.tensor([code for code in range(256) if code & 127 != 127], dtype=torch.uint8)
    head_dim = 256
    cache = torch.zeros(1, 1, 2, 1, 32 * (head_dim + 4), dtype=torch.uint8)
    cache[0, 0, 1, 0, : len(codes)] = codes
    cache[0, 0, :, 0, 32 * head_dim :].view(torch.float32)[:, 0] = 0.5
    zeros = torch.zeros(1, dtype=torch.int32)
    found = ops.paged_attention(
        torch.ones(1, 1, head_dim), cache, 0, zeros[None], torch.tensor([0, 1], dtype=torch.int32), zeros, 1.0
    )
    assert torch.equal(found[0, 0, : len(codes)], codes.view(torch.float8_e4m3fn).float() * 0.5)
