"""What latent attention does beside attending: the write into the cache, products of heads, and all of it in a row."""

from __future__ import annotations

import pytest
import torch
from closeness import distance, same_bits
from latent_cases import latent_case

from engine.ops import latent_attention as reference
from engine.ops.cuda.latent import absorb, expand, latent_attention, store_latents
from engine.ops.cuda.rows import rms_norm
from engine.ops.latent_norm import LatentNorm
from wire.errors import SpliceError

SHAPES = [(512, 64, 128, 3), (256, 32, 64, 2), (576, 16, 8, 1), (1024, 128, 0, 1)]
"""rank, rope, the part of a query head that stays, heads."""


def _store_case(platform, drawn, rank, rope, still, heads):
    tokens, block_tokens = platform.pick(4, 70), 32
    q, down = drawn(tokens, heads, still + rope), drawn(tokens, rank + rope)
    angles = torch.outer(torch.arange(100.0), 10000 ** (-torch.arange(rope // 2) / (rope // 2)))
    table = torch.cat((angles.cos(), angles.sin()), dim=1).to(platform.device)
    positions = torch.randint(100, (tokens,), generator=torch.Generator().manual_seed(1)).to(platform.device)
    slots = torch.randperm(5 * block_tokens, generator=torch.Generator().manual_seed(2))[:tokens].to(platform.device)
    cache = torch.full((5, 2, 1, 1, block_tokens, rank + rope), float("nan"), dtype=torch.bfloat16)
    return q, down[:, :rank], down[:, rank:], positions, table, cache.to(platform.device), slots


@pytest.mark.parametrize(("rank", "rope", "still", "heads"), SHAPES)
def test_queries_turn_and_latents_are_stored_as_the_reference_does(platform, drawn, rank, rope, still, heads):
    q, latents, keys, positions, table, cache, slots = _store_case(platform, drawn, rank, rope, still, heads)
    wanted_cache = cache.clone().cpu()
    wanted = reference.store_latents(
        *(one.cpu() for one in (q, latents, keys, positions, table)), wanted_cache, 1, slots.cpu()
    )
    found = store_latents(platform.library, q, latents, keys, positions, table, cache, 1, slots)
    assert found is q
    assert same_bits(q.cpu(), wanted)
    assert same_bits(cache.cpu(), wanted_cache)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rank", [256, 512, 576])
def test_a_fused_norm_gives_the_bits_of_the_norm_alone(platform, drawn, rank, dtype):
    q, latents, keys, positions, table, cache, slots = _store_case(platform, drawn, rank, 64, 8, 2)
    weight, apart = drawn(rank, dtype=dtype), cache.clone()
    normed = rms_norm(platform.library, latents, weight, 1e-6)
    store_latents(platform.library, q.clone(), normed, keys, positions, table, apart, 0, slots)
    store_latents(platform.library, q, latents, keys, positions, table, cache, 0, slots, LatentNorm(weight, 1e-6))
    assert same_bits(cache, apart)


def test_a_negative_slot_is_not_stored_and_its_query_turns(platform, drawn):
    q, latents, keys, positions, table, cache, slots = _store_case(platform, drawn, 512, 64, 128, 3)
    before, own = cache.clone(), q.clone()
    store_latents(platform.library, q, latents, keys, positions, table, cache, 0, torch.full_like(slots, -1))
    assert same_bits(cache, before)
    store_latents(platform.library, own, latents, keys, positions, table, cache, 0, slots)
    assert same_bits(q, own)


@pytest.mark.parametrize(("nope", "values", "rank"), [(128, 128, 512), (64, 64, 256), (72, 136, 8)])
@pytest.mark.parametrize("tokens", [1, 21])
def test_products_of_heads_are_the_exact_ones_rounded(platform, drawn, nope, values, rank, tokens):
    q, up = drawn(tokens, 2, nope + 16), drawn(2, nope + values, rank)
    latents = drawn(2, tokens, rank).transpose(0, 1)
    found = absorb(platform.library, q[:, :, :nope], up)
    exact = torch.einsum("mhk,hkn->mhn", q[:, :, :nope].double(), up[:, :nope].double())
    assert distance(found, exact) < 4e-3
    found = expand(platform.library, latents, up, nope)
    exact = torch.einsum("mhk,hnk->mhn", latents.double(), up[:, nope:].double())
    assert distance(found, exact) < 4e-3


def test_products_of_a_row_are_the_same_in_any_company(platform, drawn, reseeded):
    tokens = platform.pick(150, 1000)
    x, up = drawn(tokens, 1, 72), drawn(1, 72 + 64, 72)
    absorbed, expanded = absorb(platform.library, x, up), expand(platform.library, x, up, 72)
    for seed, (first, count) in enumerate([(0, 1), (120, 16), (133, 17)]):
        reseeded(seed + 1)
        part = x[first : first + count]
        assert same_bits(absorb(platform.library, part, up), absorbed[first : first + count])
        assert same_bits(expand(platform.library, part, up, 72), expanded[first : first + count])


@pytest.mark.parametrize("kernel", ["latent_decode", "latent_prefill"])
def test_all_of_it_is_what_the_reference_computes(platform, drawn, kernel):
    heads, nope, values, (rank, rope) = 3, 64, 72, (256, 32)
    case = latent_case([(40, 2), (3, 1)], heads, (rank, rope), platform.device)
    q, up = drawn(3, heads, nope + rope), drawn(heads, nope + values, rank, scale=rank**-0.5)
    found = latent_attention(platform.library, kernel, q, case.cache, 1, case.rows, up, 0.1)
    rows = case.rows
    wanted = reference.latent_attention(
        q.float().cpu(), case.cache.float().cpu(), 1, rows.block_tables.cpu(), rows.query_starts.cpu(),
        rows.starts.cpu(), torch.zeros(2, dtype=torch.int64), up.float().cpu(), 0.1,
    )  # fmt: skip
    assert distance(found, wanted) < 1e-2


def test_what_writing_and_multiplying_cannot_take_is_refused_by_name(platform, drawn):
    library = platform.library
    q, latents, keys, positions, table, cache, slots = _store_case(platform, drawn, 512, 64, 128, 3)
    for bad, words in (
        ((q.float(), latents, keys, positions, table, cache, 0, slots), "q is of torch.float32"),
        (
            (q[:, :, :32].contiguous(), latents, keys, positions, table, cache, 0, slots),
            "heads of 64 dimensions at least",
        ),
        ((q, latents, keys[:, :32], positions, table, cache, 0, slots), r"keys is of shape \(\d+, 32\), expected"),
        ((q, latents, keys, positions, table[:, :32].contiguous(), cache, 0, slots), "cos_sin is of shape"),
        ((q, latents, keys, positions.int(), table, cache, 0, slots), "positions is of torch.int32"),
        ((q, latents, keys, positions, table, cache, 2, slots), "layer is 2, expected 0 to 1"),
        ((q, latents, keys, positions, table, cache[:, :, :, 0], 0, slots), "kv_cache is of shape"),
    ):
        with pytest.raises(SpliceError, match=words):
            store_latents(library, *bad)
    with pytest.raises(SpliceError, match=r"norm is of shape \(64,\), expected \[512\]"):
        store_latents(library, q, latents, keys, positions, table, cache, 0, slots, LatentNorm(drawn(64), 1e-6))
    with pytest.raises(SpliceError, match="a size or stride of 12, expected a multiple of 8"):
        absorb(library, drawn(1, 1, 12), drawn(1, 20, 16))
    with pytest.raises(SpliceError, match="expected multiples of 16 bytes"):
        absorb(library, drawn(2, 2, 12), drawn(2, 20, 16))
    with pytest.raises(SpliceError, match=r"up is of shape \(3, 64, 16\), expected \[2, 64, 16\]"):
        absorb(library, drawn(2, 2, 64), drawn(3, 128, 16))
    case = latent_case([(3, 1)], 2, (256, 32), q.device)
    with pytest.raises(SpliceError, match="q is heads of 32"):
        latent_attention(library, "latent_decode", case.rotated, case.cache, 1, case.rows, drawn(2, 128, 256), 1.0)
