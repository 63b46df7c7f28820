"""Rows that are pushed, keys and values or latents, lie in both caches, bit for bit, and nothing else is written."""

from __future__ import annotations

import pytest
import torch
from closeness import same_bits

from engine.ops.cuda.cache import rope_and_store
from engine.ops.cuda.latent import store_latents
from engine.ops.cuda.push import rope_store_and_push, store_latents_and_push
from engine.ops.head_norms import HeadNorms
from engine.ops.latent_norm import LatentNorm
from engine.steps.peer_rows import PeerRows
from wire.errors import SpliceError

TOKENS, BLOCK_TOKENS = 6, 16


def _case(platform, drawn, dim: int = 64, kv_heads: int = 2):
    qkv = drawn(TOKENS, 3 + 2 * kv_heads, dim)
    q, k, v = qkv[:, :3], qkv[:, 3 : 3 + kv_heads], qkv[:, 3 + kv_heads :]
    angles = torch.outer(torch.arange(50.0), 10000 ** (-torch.arange(dim // 4) / (dim // 4)))
    table = torch.cat((angles.cos(), angles.sin()), dim=1).to(platform.device)
    positions = torch.tensor([0, 7, 49, 3, 3, 20], device=platform.device)
    slots = torch.tensor([0, 17, 33, -1, 40, 16], device=platform.device)
    return q, k, v, positions, table, slots


def _cache(platform, blocks: int, dim: int = 64, kv_heads: int = 2) -> torch.Tensor:
    return torch.full(
        (blocks, 2, 2, kv_heads, BLOCK_TOKENS, dim), float("nan"), dtype=torch.bfloat16, device=platform.device
    )


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("dim", [64, 96])
def test_pushed_rows_have_the_bits_of_the_local_ones_at_their_own_places(platform, drawn, dim, normed):
    q, k, v, positions, table, slots = _case(platform, drawn, dim)
    norms = HeadNorms(drawn(dim), drawn(dim), 1e-6) if normed else None
    plain, local = _cache(platform, 3, dim), _cache(platform, 3, dim)
    wanted = rope_and_store(platform.library, q, k, v, positions, table, plain, 1, slots, norms)
    peers = [_cache(platform, 5, dim), _cache(platform, 2, dim)]
    which = [0, 1, -1, 0, 0, 1]
    caches = torch.tensor([0 if i < 0 else peers[i].data_ptr() for i in which], device=platform.device)
    there = torch.tensor([79, 0, 5, 8, -1, 31], device=platform.device)
    found = rope_store_and_push(
        platform.library, q, k, v, positions, table, local, 1, slots, PeerRows(caches, there), norms
    )
    assert same_bits(found, wanted)
    assert same_bits(local, plain)
    expected = [torch.full_like(peer, float("nan")) for peer in peers]
    for token, (peer, slot) in enumerate(zip(which, there.tolist(), strict=True)):
        if peer >= 0 and slot >= 0 and slots[token] >= 0:
            block, offset = divmod(int(slots[token]), BLOCK_TOKENS)
            expected[peer][slot // BLOCK_TOKENS, 1, :, :, slot % BLOCK_TOKENS] = plain[block, 1, :, :, offset]
    for peer, want in zip(peers, expected, strict=True):
        assert same_bits(peer, want)


def test_a_row_pushed_alone_has_the_bits_it_has_among_others(platform, drawn):
    q, k, v, positions, table, slots = _case(platform, drawn)
    together, alone = _cache(platform, 3), _cache(platform, 3)
    for peer, rows in ((together, slice(0, TOKENS)), (alone, slice(2, 3))):
        count = len(range(TOKENS)[rows])
        caches = torch.full((count,), peer.data_ptr(), device=platform.device)
        arguments = (q[rows], k[rows], v[rows], positions[rows].clone(), table, _cache(platform, 3), 0)
        places = slots[rows].clone()
        rope_store_and_push(platform.library, *arguments, places, PeerRows(caches, places))
    assert same_bits(together[2, 0, :, :, 1], alone[2, 0, :, :, 1])
    assert not bool(alone[2, 0, :, :, 1].isnan().any())


def test_peers_that_do_not_fit_the_rows_are_refused(platform, drawn):
    q, k, v, positions, table, slots = _case(platform, drawn)
    caches = torch.zeros(TOKENS, dtype=torch.int64, device=platform.device)
    with pytest.raises(SpliceError, match=r"peers\.slots is of shape"):
        rope_store_and_push(
            platform.library,
            q,
            k,
            v,
            positions,
            table,
            _cache(platform, 3),
            0,
            slots,
            PeerRows(caches, slots[1:].clone()),
        )
    with pytest.raises(SpliceError, match=r"peers\.caches is of torch\.int32"):
        rope_store_and_push(
            platform.library, q, k, v, positions, table, _cache(platform, 3), 0, slots, PeerRows(caches.int(), slots)
        )


@pytest.mark.parametrize("normed", [False, True])
def test_pushed_latents_have_the_bits_of_the_local_ones_at_their_own_places(platform, drawn, normed):
    rank, rope, heads, blocks = 256, 32, 2, 5
    q, down = drawn(TOKENS, heads, 16 + rope), drawn(TOKENS, rank + rope)
    latents, keys = down[:, :rank], down[:, rank:]
    angles = torch.outer(torch.arange(50.0), 10000 ** (-torch.arange(rope // 2) / (rope // 2)))
    table = torch.cat((angles.cos(), angles.sin()), dim=1).to(platform.device)
    positions = torch.tensor([0, 7, 49, 3, 3, 20], device=platform.device)
    slots = torch.tensor([0, 17, 33, -1, 40, 16], device=platform.device)
    norm = LatentNorm(drawn(rank), 1e-6) if normed else None

    def cache() -> torch.Tensor:
        shape = (blocks, 2, 1, 1, BLOCK_TOKENS, rank + rope)
        return torch.full(shape, float("nan"), dtype=torch.bfloat16, device=platform.device)

    plain, local, peer = cache(), cache(), cache()
    wanted = store_latents(platform.library, q.clone(), latents, keys, positions, table, plain, 1, slots, norm)
    caches = torch.tensor([peer.data_ptr(), peer.data_ptr(), 0, peer.data_ptr(), peer.data_ptr(), peer.data_ptr()])
    there = torch.tensor([79, 0, 5, 8, -1, 31], device=platform.device)
    rows = PeerRows(caches.to(platform.device), there)
    found = store_latents_and_push(
        platform.library, q.clone(), latents, keys, positions, table, local, 1, slots, rows, norm
    )
    assert same_bits(found, wanted)
    assert same_bits(local, plain)
    expected = torch.full_like(peer, float("nan"))
    for token in (0, 1, 5):
        (block, offset), (to, at) = (divmod(int(x[token]), BLOCK_TOKENS) for x in (slots, there))
        expected[to, 1, 0, 0, at] = plain[block, 1, 0, 0, offset]
    assert same_bits(peer, expected)
