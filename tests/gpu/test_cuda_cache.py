"""Writing and copying KV: every element where it belongs, nothing beside it touched."""

from __future__ import annotations

import pytest
import torch
from closeness import distance, same_bits

from engine.ops import reference
from engine.ops.cuda.cache import PoolPart, copy_blocks, rope_and_store
from engine.ops.cuda.rows import rms_norm
from engine.ops.head_norms import HeadNorms
from wire.errors import SpliceError

SHAPES = [(64, 64, 9, 3), (128, 128, 8, 2), (128, 64, 4, 4), (80, 0, 2, 1), (256, 256, 3, 1), (96, 32, 2, 2)]
"""head_dim, rotary_dim, heads of q and of KV."""


def _table(platform, rotary: int) -> torch.Tensor:
    angles = torch.outer(torch.arange(100.0), 10000 ** (-torch.arange(rotary // 2) / max(1, rotary // 2)))
    return torch.cat((angles.cos(), angles.sin()), dim=1).to(platform.device)


def _case(platform, drawn, dim, rotary, q_heads, kv_heads):
    tokens, blocks, block_tokens = platform.pick(5, 70), 9, 32
    qkv = drawn(tokens, q_heads + 2 * kv_heads, dim)
    q, k, v = qkv[:, :q_heads], qkv[:, q_heads : q_heads + kv_heads], qkv[:, q_heads + kv_heads :]
    positions = torch.randint(100, (tokens,), generator=torch.Generator().manual_seed(1)).to(platform.device)
    slots = torch.randperm(blocks * block_tokens, generator=torch.Generator().manual_seed(2))[:tokens]
    cache = torch.full((blocks, 2, 2, kv_heads, block_tokens, dim), float("nan"), dtype=torch.bfloat16)
    return q, k, v, positions, _table(platform, rotary), cache.to(platform.device), slots.to(platform.device)


@pytest.mark.parametrize(("dim", "rotary", "q_heads", "kv_heads"), SHAPES)
def test_heads_turn_and_are_stored_as_the_reference_does(platform, drawn, dim, rotary, q_heads, kv_heads):
    q, k, v, positions, table, cache, slots = _case(platform, drawn, dim, rotary, q_heads, kv_heads)
    wanted_cache = cache.clone().cpu()
    wanted = reference.rope_and_store(
        q.cpu(), k.cpu(), v.cpu(), positions.cpu(), table.cpu(), wanted_cache, 1, slots.cpu()
    )
    found = rope_and_store(platform.library, q, k, v, positions, table, cache, 1, slots)
    assert same_bits(found.cpu(), wanted)
    assert same_bits(cache.cpu(), wanted_cache)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_norms_of_heads_come_first(platform, drawn, dtype):
    q, k, v, positions, table, cache, slots = _case(platform, drawn, 128, 128, 4, 2)
    norms = HeadNorms(drawn(128, dtype=dtype), drawn(128, dtype=dtype), 1e-6)

    def normed(heads: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return rms_norm(platform.library, heads.reshape(-1, 128), weight, 1e-6).view(heads.shape)

    apart = cache.clone()
    turned = rope_and_store(
        platform.library, normed(q, norms.q), normed(k, norms.k), v, positions, table, apart, 0, slots
    )
    found = rope_and_store(platform.library, q, k, v, positions, table, cache, 0, slots, norms)
    assert distance(found, turned) < 1e-2
    assert distance(cache.nan_to_num(), apart.nan_to_num()) < 1e-2


def test_a_row_without_a_slot_is_not_stored(platform, drawn):
    q, k, v, positions, table, cache, slots = _case(platform, drawn, 64, 64, 2, 1)
    slots[:] = -1
    rope_and_store(platform.library, q, k, v, positions, table, cache, 0, slots)
    assert bool(cache.isnan().all())


def test_a_layer_the_cache_does_not_have_is_refused(platform, drawn):
    q, k, v, positions, table, cache, slots = _case(platform, drawn, 64, 64, 2, 1)
    with pytest.raises(SpliceError, match="layer is 2, expected 0 to 1"):
        rope_and_store(platform.library, q, k, v, positions, table, cache, 2, slots)


def test_blocks_come_back_as_they_were_after_gather_and_scatter(platform, drawn):
    pool = drawn(7, 3, 2, 4, 32, 64)
    ids = torch.tensor([5, 0, 3], device=platform.device)
    buffer, other = drawn(3, 3, 2, 4, 32, 64), drawn(7, 3, 2, 4, 32, 64)
    copy_blocks(platform.library, PoolPart(buffer, None), PoolPart(pool, ids), 3, 3, 4)
    assert same_bits(buffer, pool[ids])
    untouched = other[[1, 2, 4, 6]].clone()
    copy_blocks(platform.library, PoolPart(other, ids), PoolPart(buffer, None), 3, 3, 4)
    assert same_bits(other[ids], pool[ids])
    assert same_bits(other[[1, 2, 4, 6]], untouched)


def test_layers_and_heads_can_be_taken_apart(platform, drawn):
    whole, part = drawn(4, 6, 2, 8, 16, 128), drawn(3, 2, 2, 4, 16, 128)
    before = part.clone()
    ids, mine = torch.tensor([3, 1], device=platform.device), torch.tensor([0, 2], device=platform.device)
    copy_blocks(
        platform.library, PoolPart(part, mine, 1, 2), PoolPart(whole, ids, first_layer=4, first_head=6), 2, 1, 2
    )
    before[mine, 1, :, 2:4] = whole[ids][:, 4, :, 6:8]
    assert same_bits(part, before)


def test_a_part_beyond_a_pool_is_refused(platform, drawn):
    pool = drawn(2, 2, 2, 2, 16, 64)
    with pytest.raises(SpliceError, match="do not lie within both pools"):
        copy_blocks(platform.library, PoolPart(pool, None, first_layer=1), PoolPart(pool.clone(), None), 2, 2, 2)
