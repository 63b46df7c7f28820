"""Paged attention: the exact one within bfloat16's rounding, and one arithmetic whatever the company and the kernel."""

from __future__ import annotations

import pytest
import torch
from closeness import distance, same_bits
from paged_cases import exact_attention, paged_case

from engine.ops.cuda.attention import (
    PagedRows,
    Scores,
    decode_attention,
    prefill_attention,
    prefill_attention_sm90,
    workspace_bytes,
)
from wire.errors import SpliceError

RAGGED = [(0, 1), (255, 1), (256, 1), (300, 3), (63, 2), (17, 5)]
"""Beginnings and ends of tiles, spans and blocks."""
TOLERANCE = 6e-3
"""Weights and the result are rounded to bfloat16."""


KERNELS = {"decode": decode_attention, "prefill": prefill_attention, "prefill_sm90": prefill_attention_sm90}


def _attend(kind: str, platform, case, scores: Scores) -> torch.Tensor:
    if kind == "prefill_sm90" and not platform.has_warpgroups("prefill_attention_sm90"):
        pytest.skip("prefill_attention_sm90 needs a Hopper GPU and its unit")
    return KERNELS[kind](platform.library, case.q, case.cache, 1, case.rows, scores)


def _agree(platform, one: torch.Tensor, other: torch.Tensor) -> bool:
    """Products of warpgroups may round otherwise on a GPU, which is asked when it is used."""
    return same_bits(one, other) if platform.name == "emulated" else distance(one, other) < TOLERANCE


@pytest.mark.parametrize(("heads", "head_dim"), [((4, 1), 64), ((8, 2), 128), ((3, 3), 128), ((20, 1), 64)])
@pytest.mark.parametrize("kind", KERNELS)
def test_attention_is_the_exact_one(platform, kind, heads, head_dim):
    case = paged_case(RAGGED, heads, head_dim, platform.device)
    scores = Scores(head_dim**-0.5)
    assert distance(_attend(kind, platform, case, scores), exact_attention(case, scores)) < TOLERANCE


@pytest.mark.parametrize(("heads", "head_dim"), [((2, 1), 256), ((3, 1), 80), ((2, 2), 96)])
def test_other_heads_are_attended_alike_by_both_kernels(platform, heads, head_dim):
    case, scores = paged_case([(70, 1), (5, 30), (250, 8)], heads, head_dim, platform.device), Scores(head_dim**-0.5)
    decoded, prefilled = (_attend(kind, platform, case, scores) for kind in ("decode", "prefill"))
    assert distance(decoded, exact_attention(case, scores)) < TOLERANCE
    assert same_bits(prefilled, decoded)


def test_a_row_of_256_has_the_same_bits_alone_and_in_any_chunk(platform, reseeded):
    case, scores = paged_case([(200, 70)], (1, 1), 256, platform.device), Scores(1 / 16, window=100)
    together = _attend("prefill", platform, case, scores)
    for seed, (first, count) in enumerate([(0, 1), (3, 66), (69, 1)]):
        reseeded(seed + 1)
        part = _attend("prefill", platform, case.alone(0, first, count), scores)
        assert same_bits(part, together[first : first + count]), (first, count)


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize(
    "scores",
    [
        Scores(0.125, window=40),
        Scores(0.125, window=1),
        Scores(0.5, softcap=5.0),
        Scores(0.25, window=300, softcap=30.0),
    ],
)
def test_windows_and_caps_are_heeded(platform, kind, scores):
    case = paged_case(RAGGED, (4, 2), 64, platform.device)
    assert distance(_attend(kind, platform, case, scores), exact_attention(case, scores)) < TOLERANCE


@pytest.mark.parametrize("kind", KERNELS)
def test_sinks_take_their_share(platform, kind):
    sinks = torch.tensor([-1e9, 0.0, 3.0, 40.0], device=platform.device)
    case, scores = paged_case(RAGGED, (4, 2), 64, platform.device), Scores(0.125, sinks=sinks)
    assert distance(_attend(kind, platform, case, scores), exact_attention(case, scores)) < TOLERANCE


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("block_tokens", [16, 128, 256])
def test_the_size_of_blocks_changes_no_bit(platform, block_tokens, kind):
    case, scores = paged_case([(290, 3)], (2, 1), 64, platform.device), Scores(0.125)
    tables, cache = case.rows.block_tables[0], case.cache[:, 1]
    count = -(-293 // 32)
    flat = cache[tables[:count].long()].permute(1, 2, 0, 3, 4).reshape(2, 1, count * 32, 64)
    blocks = -(-293 // block_tokens)
    padded = torch.full((2, 1, blocks * block_tokens, 64), float("nan"), dtype=flat.dtype, device=flat.device)
    padded[:, :, :293] = flat[:, :, :293]
    other = padded.view(2, 1, blocks, block_tokens, 64).permute(2, 0, 1, 3, 4).unsqueeze(1).contiguous()
    table = torch.arange(blocks, dtype=torch.int32, device=flat.device).unsqueeze(0)
    rows = PagedRows(table, case.rows.query_starts, case.rows.starts, 293, 3)
    wanted = _attend(kind, platform, case, scores)
    assert same_bits(KERNELS[kind](platform.library, case.q, other, 0, rows, scores), wanted)


@pytest.mark.parametrize("scores", [Scores(0.125), Scores(0.125, window=70, softcap=20.0)])
@pytest.mark.parametrize(("heads", "head_dim"), [((4, 1), 64), ((4, 2), 128)])
def test_both_kernels_give_the_same_bits(platform, scores, heads, head_dim):
    long = platform.pick(530, 4100)
    case = paged_case([(0, 70), (long, 3), (250, 20)], heads, head_dim, platform.device)
    decoded, prefilled = (_attend(kind, platform, case, scores) for kind in ("decode", "prefill"))
    assert same_bits(decoded, prefilled)


@pytest.mark.parametrize("scores", [Scores(0.125), Scores(0.125, window=70, softcap=20.0)])
@pytest.mark.parametrize(("heads", "head_dim"), [((4, 1), 64), ((3, 1), 80), ((2, 2), 96), ((4, 2), 128)])
def test_products_of_warpgroups_give_the_bits_of_others(platform, scores, heads, head_dim):
    """Two blocks of rows, a block with rows of one warpgroup alone, more tiles than there are places for them."""
    long = platform.pick(530, 4100)
    case = paged_case([(0, 70), (long, 3), (250, 20)], heads, head_dim, platform.device)
    found, wanted = (_attend(kind, platform, case, scores) for kind in ("prefill_sm90", "prefill"))
    assert _agree(platform, found, wanted)


def test_no_order_of_warpgroups_changes_a_bit(platform, reseeded):
    case, scores = paged_case([(590, 9), (0, 3)], (8, 1), 64, platform.device), Scores(0.125)
    first = _attend("prefill_sm90", platform, case, scores)
    for seed in range(1, 13):
        reseeded(seed)
        assert same_bits(_attend("prefill_sm90", platform, case, scores), first), seed


@pytest.mark.parametrize("kind", ["prefill", "prefill_sm90"])
def test_a_row_has_the_same_bits_alone_and_in_any_chunk(platform, reseeded, kind):
    case, scores = paged_case([(5, 40), (700, 1), (250, 12)], (4, 2), 64, platform.device), Scores(0.125)
    together = _attend(kind, platform, case, scores)
    for seed, (sequence, first, count) in enumerate([(0, 0, 40), (0, 39, 1), (0, 7, 20), (1, 0, 1), (2, 5, 7)]):
        reseeded(seed + 1)
        begin, alone = sum(rows for _, rows in case.parts[:sequence]) + first, case.alone(sequence, first, count)
        part = _attend(kind, platform, alone, scores)
        assert same_bits(part, together[begin : begin + count]), (sequence, first, count)
        decoded = _attend("decode", platform, alone, scores)
        assert same_bits(decoded, part) if kind == "prefill" else _agree(platform, decoded, part)


def test_a_bound_on_the_context_that_is_too_high_changes_no_bit(platform):
    case, scores = paged_case([(300, 1), (20, 1)], (4, 2), 64, platform.device), Scores(0.125)
    exact = _attend("decode", platform, case, scores)
    tables = torch.nn.functional.pad(case.rows.block_tables, (0, 40))
    wide = PagedRows(tables, case.rows.query_starts, case.rows.starts, 50 * 32, 7)
    found = decode_attention(platform.library, case.q, case.cache, 1, wide, scores)
    assert same_bits(found, exact)


def test_blocks_that_walk_several_spans_change_no_bit(platform):
    """More sequences than the device takes abreast, in the emulator 64 blocks: each block walks all of a sequence."""
    parts = [(600 - 7 * i, 1) for i in range(platform.pick(3, 40))]
    heads = platform.pick(22, 64)
    case, scores = paged_case(parts, (heads, heads), 64, platform.device), Scores(0.125, window=500)
    together = _attend("decode", platform, case, scores)
    for sequence in (0, len(parts) - 1):
        alone = _attend("decode", platform, case.alone(sequence, 0, 1), scores)
        assert same_bits(alone, together[sequence : sequence + 1])


def test_parts_of_many_spans_are_joined_in_their_order(platform):
    """Nine parts at once and more than a block keeps shares for: 34 and, on a GPU, 258 spans."""
    for length in (9 * 256, 34 * 256 - 3, platform.pick(8, 258) * 256):
        case, scores = paged_case([(length - 1, 1)], (1, 1), 64, platform.device), Scores(0.125)
        decoded = _attend("decode", platform, case, scores)
        assert same_bits(decoded, _attend("prefill", platform, case, scores)), length


@pytest.mark.parametrize("kind", KERNELS)
def test_a_sequence_without_rows_is_passed_over(platform, kind):
    case, scores = paged_case([(40, 2), (90, 1)], (4, 2), 64, platform.device), Scores(0.125)
    exact = _attend(kind, platform, case, scores)
    device = platform.device
    tables = case.rows.block_tables[[0, 0, 1, 1]].contiguous()
    begins = torch.tensor([0, 2, 2, 3, 3], dtype=torch.int32, device=device)
    starts = torch.tensor([40, 7, 90, 0], dtype=torch.int32, device=device)
    rows = PagedRows(tables, begins, starts, 91, 2)
    assert same_bits(KERNELS[kind](platform.library, case.q, case.cache, 1, rows, scores), exact)


def test_memory_the_parts_need_is_counted_and_demanded(platform):
    case = paged_case([(300, 1)], (4, 2), 64, platform.device)
    assert workspace_bytes(platform.library, 1, 4, 64, 301) == 4 * 2 * (64 + 2) * 4
    small = torch.empty(64, dtype=torch.uint8, device=platform.device)
    with pytest.raises(SpliceError, match="workspace is 64 bytes, expected 2112 at least"):
        decode_attention(platform.library, case.q, case.cache, 1, case.rows, Scores(0.125), small)


@pytest.mark.parametrize("scores", [Scores(0.0), Scores(-0.125), Scores(float("nan")), Scores(0.125, softcap=-5.0)])
def test_scores_whose_order_would_turn_are_refused(platform, scores):
    case = paged_case([(3, 1)], (2, 1), 64, platform.device)
    for kind, attend in KERNELS.items():
        if platform.library.has(f"{kind.removesuffix('_sm90')}_attention{'_sm90' * kind.endswith('_sm90')}"):
            with pytest.raises(SpliceError, match="expected a positive scale and a cap that is positive or 0"):
                attend(platform.library, case.q, case.cache, 1, case.rows, scores)


def test_shapes_no_kernel_has_are_refused(platform):
    case = paged_case([(3, 1)], (2, 1), 256, platform.device)
    if platform.library.has("prefill_attention_sm90"):
        with pytest.raises(SpliceError, match="head_dim 256, expected 64, 80, 96 or 128"):
            prefill_attention_sm90(platform.library, case.q, case.cache, 1, case.rows, Scores(0.1))
    case = paged_case([(3, 1)], (2, 1), 72, platform.device)
    for kind in ("decode", "prefill"):
        with pytest.raises(SpliceError, match="head_dim 72, expected 64, 80, 96, 128 or 256"):
            _attend(kind, platform, case, Scores(0.1))
    case = paged_case([(3, 1)], (3, 2), 64, platform.device)
    with pytest.raises(SpliceError, match="3 query heads on 2 KV heads"):
        _attend("prefill", platform, case, Scores(0.1))
    case = paged_case([(3, 1)], (2, 2), 64, platform.device, block_tokens=8)
    with pytest.raises(SpliceError, match="blocks of 8 tokens, expected 16"):
        _attend("prefill", platform, case, Scores(0.1))
