"""Attention over a cache of latents: right on both sides of the prompt's end, and with one result for any cut."""

from __future__ import annotations

import pytest
import torch

from engine.ops.latent_attention import latent_attention, store_latents
from engine.ops.latent_norm import LatentNorm
from engine.ops.registry import select_ops

HEADS, NOPE, ROPE, VALUE, RANK = 10, 12, 6, 8, 20
BLOCK_TOKENS, LENGTH = 32, 100
TABLE = torch.tensor([[5, 2, 0, 6]], dtype=torch.int32)


def _random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


Q = _random(LENGTH, HEADS, NOPE + ROPE, seed=0)
ROWS = _random(LENGTH, RANK + ROPE, seed=1)
UP = _random(HEADS, NOPE + VALUE, RANK, seed=2) / RANK**0.5
SCALE = 0.3
STILL = torch.cat((torch.ones(LENGTH, ROPE // 2), torch.zeros(LENGTH, ROPE // 2)), dim=1)
"""A rotary table that turns nothing."""


def _attend(
    cuts: list[int], prompt_end: int, dtype: torch.dtype = torch.float32, cached: torch.dtype | None = None
) -> torch.Tensor:
    """The sequence cut at `cuts`, each part stored and attended in a step of its own, over a cache of NaN."""
    cache = torch.full((8, 3, 1, 1, BLOCK_TOKENS, RANK + ROPE), torch.nan, dtype=cached or dtype)
    parts = []
    for first, last in zip([0, *cuts], [*cuts, LENGTH], strict=True):
        positions = torch.arange(first, last)
        slots = TABLE[0][positions // BLOCK_TOKENS].long() * BLOCK_TOKENS + positions % BLOCK_TOKENS
        q, latents, keys = Q[first:last].to(dtype), ROWS[first:last, :RANK].to(dtype), ROWS[first:last, RANK:].to(dtype)
        q = store_latents(q, latents, keys, positions, STILL, cache, 1, slots)
        bounds, starts = torch.tensor([0, last - first], dtype=torch.int32), torch.tensor([first], dtype=torch.int32)
        ends = torch.tensor([prompt_end])
        parts.append(latent_attention(q, cache, 1, TABLE, bounds, starts, ends, UP.to(dtype), SCALE))
    return torch.cat(parts)


def _expected() -> torch.Tensor:
    latents, rotated = ROWS.double().split([RANK, ROPE], dim=1)
    keys, values = torch.einsum("pr,hdr->hpd", latents, UP.double()).split([NOPE, VALUE], dim=2)
    keys = torch.cat((keys, rotated.expand(HEADS, -1, -1)), dim=2)
    scores = torch.einsum("phd,hkd->hpk", Q.double(), keys) * SCALE
    future = torch.ones(LENGTH, LENGTH).triu(1).bool()
    return torch.einsum("hpk,hkd->phd", scores.masked_fill(future, -torch.inf).softmax(-1), values)


@pytest.mark.parametrize("prompt_end", [0, 1, 40, 64, LENGTH, 1 << 40])
def test_both_ways_compute_the_same_attention(prompt_end: int) -> None:
    assert torch.allclose(_attend([], prompt_end).double(), _expected(), atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "cached"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16)],
)
@pytest.mark.parametrize("cuts", [[33], [1, 2, 31, 64], [20, 50, 70, 71], list(range(1, LENGTH))])
def test_no_cut_changes_a_bit(cuts: list[int], dtype: torch.dtype, cached: torch.dtype) -> None:
    assert torch.equal(_attend(cuts, 50, dtype, cached), _attend([], 50, dtype, cached))


def test_rows_of_a_prompt_and_rows_after_it_round_differently() -> None:
    """Why a row's way must follow from its place in the request: here, and only here, the two ways differ."""
    assert not torch.equal(_attend([], 50)[50:], _attend([], LENGTH)[50:])
    assert torch.equal(_attend([], 50)[:50], _attend([], LENGTH)[:50])


def test_keys_and_the_last_part_of_queries_turn_by_halves_and_the_rest_stands_still() -> None:
    angles = torch.outer(torch.arange(9.0), torch.tensor([1.0, 0.5, 0.25]))
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1)
    cache = torch.zeros(3, 2, 1, 1, BLOCK_TOKENS, RANK + ROPE)
    q, latents, keys = Q[:2], ROWS[:2, :RANK], ROWS[:2, RANK:]
    turned = store_latents(q, latents, keys, torch.tensor([0, 8]), cos_sin, cache, 1, torch.tensor([40, 2]))
    assert torch.equal(turned[0], q[0])
    assert torch.equal(turned[:, :, :NOPE], q[:, :, :NOPE])
    spin = torch.exp(1j * angles[8].double())
    pairs = torch.complex(q[1, :, NOPE : NOPE + 3].double(), q[1, :, NOPE + 3 :].double()) * spin
    assert torch.allclose(turned[1, :, NOPE:].double(), torch.cat((pairs.real, pairs.imag), dim=1), atol=1e-5)
    pair = torch.complex(keys[1, :3].double(), keys[1, 3:].double()) * spin
    assert torch.equal(cache[0, 1, 0, 0, 2, :RANK], latents[1])
    assert torch.allclose(cache[0, 1, 0, 0, 2, RANK:].double(), torch.cat((pair.real, pair.imag)), atol=1e-5)
    assert torch.equal(cache[1, 1, 0, 0, 8], ROWS[0])
    assert int(cache.count_nonzero()) == 2 * (RANK + ROPE)


@pytest.mark.parametrize("ops", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_of_latents_has_the_bits_of_the_norm_beside_it(ops: str, dtype: torch.dtype) -> None:
    table = select_ops(dtype, ops, frozenset({"latent_attention"}))
    weight, rows = _random(RANK, seed=7).to(dtype), ROWS[:3].to(dtype)
    q, positions, slots = Q[:3].to(dtype), torch.arange(3), torch.tensor([40, 2, 33])
    cos_sin, caches = (
        _random(8, ROPE, seed=8),
        [torch.zeros(2, 1, 1, 1, BLOCK_TOKENS, RANK + ROPE, dtype=dtype) for _ in "ab"],
    )
    latents, keys = rows[:, :RANK], rows[:, RANK:]
    fused = table.store_latents(q, latents, keys, positions, cos_sin, caches[0], 0, slots, LatentNorm(weight, 1e-6))
    normed = table.rms_norm(latents.contiguous(), weight, 1e-6)
    apart = table.store_latents(q, normed, keys, positions, cos_sin, caches[1], 0, slots)
    assert torch.equal(fused, apart)
    assert torch.equal(*caches)
    assert caches[0].any()
