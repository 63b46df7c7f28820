"""Choices in the order of experts: a stable sort, its tiles, and the way back with its weighted sum."""

from __future__ import annotations

import pytest
import torch
from closeness import same_bits

from engine.ops.cuda.permutation import Permutation, gather_rows, permute, unpermute
from engine.ops.experts import weighted_sum
from wire.errors import SpliceError

pytestmark = pytest.mark.usefixtures("poisoned")
EXPERTS = 6
CHOICES = {"even": (13, 2), "one-token": (1, 3), "many": (200, 8), "single": (70, 1), "more-than-a-warp-each": (601, 2)}
"""(tokens, top_k)"""


def choices(kind: str, tokens: int, top_k: int, num_experts: int = EXPERTS) -> torch.Tensor:
    """`[tokens, top_k]`: drawn, or all of one expert's, or all but one expert's."""
    if kind == "one-takes-all":
        return torch.full((tokens, top_k), num_experts - 1)
    ids = torch.randint(num_experts, (tokens, top_k), generator=torch.Generator().manual_seed(tokens))
    return torch.where(ids == 2, 3, ids) if kind == "one-is-empty" else ids


def _check(ids: torch.Tensor, found: Permutation, max_rows: int | None) -> None:
    """By the definition, one expert after another."""
    flat, top_k, first, tiles = ids.flatten(), ids.shape[1], 0, []
    places = torch.full_like(flat, -1)
    for expert in range(EXPERTS):
        own = (flat == expert).nonzero().flatten()
        offset = first if max_rows is None else expert * max_rows
        assert int(found.counts[expert]) == len(own)
        assert int(found.offsets[expert]) == offset
        assert found.sources[offset : offset + len(own)].tolist() == (own // top_k).tolist()
        places[own] = torch.arange(offset, offset + len(own))
        first += len(own)
        for begin in range(0, len(own), found.tile_rows):
            tiles.append([expert, offset + begin, min(found.tile_rows, len(own) - begin)])
    assert found.places.flatten().tolist() == places.tolist()
    assert int(found.tile_count) == len(tiles) <= len(found.tiles)
    assert found.tiles[: len(tiles)].tolist() == tiles


@pytest.mark.parametrize("kind", ["drawn", "one-takes-all", "one-is-empty"])
@pytest.mark.parametrize("size", CHOICES)
def test_choices_are_sorted_by_expert_and_stay_in_the_order_of_tokens(platform, kind, size):
    ids = choices(kind, *CHOICES[size])
    for tile_rows in (16, 128):
        _check(ids, permute(platform.library, ids.to(platform.device), EXPERTS, tile_rows), None)


def test_masked_rows_have_a_place_of_their_own_for_each_expert(platform):
    ids = torch.stack([torch.randperm(EXPERTS, generator=torch.Generator().manual_seed(i))[:3] for i in range(40)])
    _check(ids, permute(platform.library, ids.to(platform.device), EXPERTS, 16, max_rows=48), 48)


def test_an_expert_that_is_elsewhere_has_no_place(platform):
    ids = choices("drawn", 50, 3, EXPERTS + 4) - 2
    assert ids.min() < 0 <= EXPERTS < ids.max()
    _check(ids, permute(platform.library, ids.to(platform.device), EXPERTS, 16), None)


def test_no_tokens_leave_every_expert_empty(platform):
    found = permute(platform.library, torch.empty(0, 2, dtype=torch.int64, device=platform.device), EXPERTS, 16)
    assert found.counts.tolist() == [0] * EXPERTS
    assert found.tile_count.tolist() == [0]


def test_the_order_of_threads_moves_no_choice(platform, reseeded):
    ids = choices("drawn", 90, 3).to(platform.device)
    first = permute(platform.library, ids, EXPERTS, 16)
    for seed in range(3):
        reseeded(seed)
        again = permute(platform.library, ids, EXPERTS, 16)
        assert torch.equal(again.places, first.places)
        assert torch.equal(again.sources, first.sources)


def test_rows_go_where_their_choices_stand(platform, drawn):
    ids = choices("drawn", 21, 3, EXPERTS + 2).to(platform.device)
    order = permute(platform.library, ids, EXPERTS, 16)
    wide = drawn(21, 104)
    gathered = gather_rows(platform.library, wide[:, :72], order)
    there = int(order.counts.sum())
    assert same_bits(gathered[:there], wide[order.sources[:there].long(), :72])


@pytest.mark.parametrize("top_k", [1, 2, 8, 11])
@pytest.mark.parametrize("has_shared", [False, True])
def test_weighted_sums_have_the_references_bits(platform, drawn, top_k, has_shared):
    tokens, size = 17, 72
    ids, weights = choices("drawn", tokens, top_k).to(platform.device), drawn(tokens, top_k, dtype=torch.float32)
    order = permute(platform.library, ids, EXPERTS, 16)
    y, shared = drawn(tokens * top_k, size), drawn(tokens, 2 * size)[:, size:] if has_shared else None
    y[order.places[3, 0].long()] = -0.0
    found = unpermute(platform.library, y, order, weights, shared)
    wanted = weighted_sum(y[order.places.long()].cpu(), weights.cpu(), None if shared is None else shared.cpu())
    assert same_bits(found.cpu(), wanted)


def test_a_choice_without_a_place_adds_nothing(platform, drawn):
    ids = torch.tensor([[-1, 2, EXPERTS], [EXPERTS, -1, -1]], device=platform.device)
    order = permute(platform.library, ids, EXPERTS, 16)
    y, weights = drawn(6, 16), drawn(2, 3, dtype=torch.float32)
    y[1:] = torch.nan
    weights[0, 0] = torch.nan
    found = unpermute(platform.library, y, order, weights)
    assert same_bits(found[0], (y[0].float() * weights[0, 1]).bfloat16())
    assert found[1].tolist() == [0.0] * 16


def test_what_the_kernels_do_not_take_is_named(platform, drawn):
    library, ids = platform.library, choices("drawn", 5, 2).to(platform.device)
    order, weights = permute(library, ids, EXPERTS, 16), drawn(5, 2, dtype=torch.float32)
    for words, call in (
        ("experts is of torch.int32", lambda: permute(library, ids.int(), EXPERTS, 16)),
        ("1025 experts", lambda: permute(library, ids, 1025, 16)),
        ("tile_rows is 0", lambda: permute(library, ids, EXPERTS, 0)),
        ("4 rows an expert for 5 tokens", lambda: permute(library, ids, EXPERTS, 16, max_rows=4)),
        ("x is of shape", lambda: gather_rows(library, drawn(4, 16), order)),
        ("multiples of 8", lambda: gather_rows(library, drawn(5, 24)[:, :12], order)),
        ("y is of shape", lambda: unpermute(library, drawn(9, 16), order, weights)),
        ("weights is of torch.bfloat16", lambda: unpermute(library, drawn(10, 16), order, weights.bfloat16())),
        ("shared is of shape", lambda: unpermute(library, drawn(10, 16), order, weights, drawn(5, 8))),
    ):
        with pytest.raises(SpliceError, match=words):
            call()
