"""Paged attention: right against float64 over ragged batches, the same bits however a prompt is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from paged_batches import PagedBatch, attention_float64, make_batch

from engine._native import Kernels
from engine.ops.native import NativeOps

RAGGED = [(0, 1), (31, 1), (32, 1), (0, 33), (5, 40), (63, 2), (100, 17), (0, 16)]
SHAPES = [(9, 3, 64, 32), (4, 4, 16, 32), (8, 1, 80, 32), (6, 2, 8, 16), (2, 2, 72, 48), (2, 1, 128, 64)]


EXTRAS: list[dict[str, Any]] = [
    {"window": 1},
    {"window": 17},
    {"window": 32},
    {"window": 50},
    {"window": 1000},
    {"softcap": 2.0},
    {"sinks": True},
    {"window": 40, "softcap": 3.0, "sinks": True},
]


def attend(ops: NativeOps, batch: PagedBatch, **extras: Any) -> torch.Tensor:
    scale = batch.q.shape[2] ** -0.5
    tables = batch.block_tables, batch.query_starts, batch.starts
    return ops.paged_attention(batch.q, batch.kv_cache, 1, *tables, scale, **extras)


def in_chunks(ops: NativeOps, whole: PagedBatch, cuts: Sequence[int], **extras: Any) -> torch.Tensor:
    """The one sequence of a batch, so many tokens a call; all of its rows."""
    rows, at, length = [], 0, len(whole.q)
    for size in cuts:
        end = min(at + size, length)
        part = replace(
            whole,
            q=whole.q[at:end],
            query_starts=torch.tensor([0, end - at], dtype=torch.int32),
            starts=torch.tensor([at], dtype=torch.int32),
        )
        rows.append(attend(ops, part, **extras))
        at = end
    return torch.cat(rows)


def with_sinks(extras: dict[str, Any], heads: int) -> dict[str, Any]:
    return {**extras, "sinks": torch.linspace(-2, 3, heads)} if "sinks" in extras else extras


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "block_tokens"), SHAPES)
def test_attention_is_near_the_float64_one(
    ops: NativeOps, heads: int, kv_heads: int, head_dim: int, block_tokens: int, dtype: torch.dtype
) -> None:
    batch = make_batch(
        RAGGED, heads=heads, kv_heads=kv_heads, head_dim=head_dim, block_tokens=block_tokens, dtype=dtype
    )
    expected = attention_float64(batch, 1, head_dim**-0.5)
    torch.testing.assert_close(attend(ops, batch).double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "block_tokens"), SHAPES)
def test_bits_are_equal_on_every_instruction_set_and_thread_count(
    other_ops: NativeOps,
    best_ops: NativeOps,
    heads: int,
    kv_heads: int,
    head_dim: int,
    block_tokens: int,
    dtype: torch.dtype,
) -> None:
    batch = make_batch(
        RAGGED, heads=heads, kv_heads=kv_heads, head_dim=head_dim, block_tokens=block_tokens, dtype=dtype
    )
    assert torch.equal(attend(other_ops, batch), attend(best_ops, batch))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [3, 9, 24])
def test_bits_do_not_depend_on_chunks_or_neighbours(best_ops: NativeOps, heads: int, dtype: torch.dtype) -> None:
    length = 130
    whole = make_batch([(0, length)], heads=heads, kv_heads=3, head_dim=64, dtype=dtype)
    expected = attend(best_ops, whole)
    for cuts in ([1] * length, [7] * 19, [32] * 5, [33, 64, 1, 40], [16, 100, 20]):
        assert torch.equal(in_chunks(best_ops, whole, cuts), expected), cuts
    # The same sequence as five slices of one batch.
    bounds = [0, 3, 40, 64, 65, length]
    split = replace(
        whole,
        block_tables=whole.block_tables.repeat(5, 1),
        query_starts=torch.tensor(bounds, dtype=torch.int32),
        starts=torch.tensor(bounds[:-1], dtype=torch.int32),
    )
    assert torch.equal(attend(best_ops, split), expected)


@pytest.mark.parametrize("extras", EXTRAS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_windows_caps_and_sinks_are_near_the_float64_ones(
    ops: NativeOps, best_ops: NativeOps, dtype: torch.dtype, extras: dict[str, Any]
) -> None:
    batch = make_batch(RAGGED, heads=6, kv_heads=2, head_dim=32, dtype=dtype)
    extras = with_sinks(extras, 6)
    found = attend(ops, batch, **extras)
    torch.testing.assert_close(found.double(), attention_float64(batch, 1, 32**-0.5, **extras), rtol=0, atol=3e-6)
    assert torch.equal(found, attend(best_ops, batch, **extras))


@pytest.mark.parametrize("extras", EXTRAS, ids=str)
def test_with_windows_too_bits_do_not_depend_on_chunks(best_ops: NativeOps, extras: dict[str, Any]) -> None:
    length = 130
    whole = make_batch([(0, length)], heads=4, kv_heads=2, head_dim=32)
    extras = with_sinks(extras, 4)
    expected = attend(best_ops, whole, **extras)
    for cuts in ([1] * length, [7] * 19, [33, 64, 1, 40]):
        assert torch.equal(in_chunks(best_ops, whole, cuts, **extras), expected), cuts


def test_what_a_window_has_left_behind_may_be_anything(ops: NativeOps) -> None:
    batch = make_batch([(90, 5)], heads=2, kv_heads=1, head_dim=16)
    expected = attend(ops, batch, window=40)
    for position in range(90 - 40 + 1):
        batch.kv_cache[int(batch.block_tables[0, position // 32]), 1, :, :, position % 32] = float("nan")
    assert torch.equal(attend(ops, batch, window=40), expected)


def test_block_size_changes_no_bit(best_ops: NativeOps) -> None:
    small = make_batch([(0, 70)], heads=4, kv_heads=2, head_dim=32, block_tokens=8)
    keys = small.kv_cache[small.block_tables[0].long()].permute(1, 2, 3, 0, 4, 5).reshape(2, 2, 2, 72, 32)
    large = torch.zeros(3, 2, 2, 2, 32, 32)
    for block in range(3):
        part = keys[:, :, :, block * 32 : block * 32 + 32]
        large[block, :, :, :, : part.shape[3]] = part
    table = torch.arange(3, dtype=torch.int32)[None]
    assert torch.equal(attend(best_ops, replace(small, kv_cache=large, block_tables=table)), attend(best_ops, small))


def test_large_scores_neither_overflow_nor_vanish(ops: NativeOps) -> None:
    batch = make_batch([(0, 70)], heads=2, kv_heads=1, head_dim=16)
    batch = replace(batch, q=batch.q * 200)
    expected = attention_float64(batch, 1, 0.25)
    torch.testing.assert_close(attend(ops, batch).double(), expected, rtol=0, atol=1e-3)


def test_nan_in_one_sequence_stays_there(ops: NativeOps) -> None:
    batch = make_batch([(0, 40), (10, 3), (0, 5)], heads=2, kv_heads=1, head_dim=16)
    batch.kv_cache[batch.block_tables[1, 0].long(), 1, 0, 0, 4] = float("nan")
    nan_rows = attend(ops, batch).isnan().flatten(1).any(1)
    assert nan_rows.tolist() == [False] * 40 + [True] * 3 + [False] * 5


def test_no_sequences_and_no_queries(ops: NativeOps) -> None:
    empty = make_batch([], heads=2, kv_heads=1, head_dim=16)
    assert attend(ops, empty).shape == (0, 2, 16)
    idle = make_batch([(5, 0), (3, 2)], heads=2, kv_heads=1, head_dim=16)
    torch.testing.assert_close(attend(ops, idle).double(), attention_float64(idle, 1, 0.25), rtol=0, atol=2e-6)


def test_tables_that_do_not_cover_the_sequence_are_refused() -> None:
    ops = NativeOps(Kernels())
    batch = make_batch([(0, 40)], heads=2, kv_heads=1, head_dim=16)
    with pytest.raises(ValueError, match="too short"):
        attend(ops, replace(batch, block_tables=batch.block_tables[:, :1].contiguous()))
    with pytest.raises(ValueError, match="outside kv_cache"):
        attend(ops, replace(batch, block_tables=batch.block_tables + 1000))
    with pytest.raises(ValueError, match="cover the rows"):
        attend(ops, replace(batch, q=batch.q[:39]))
