"""Attention over latents: the exact one within bfloat16's rounding, and one arithmetic whatever the company, the kernel
and the division among blocks."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from closeness import distance, same_bits
from latent_cases import exact_latent_attention, latent_case

from engine.ops.cuda.attention import PagedRows
from engine.ops.cuda.latent import Division, attend_latents, workspace_bytes
from wire.errors import SpliceError

KERNELS = ("latent_decode", "latent_prefill")
HOPPERS = ("latent_sm90_decode", "latent_sm90_prefill")
TOLERANCE = 6e-3
"""Weights and the result are rounded to bfloat16."""
WORST = 0.03
"""Of an element, where values are of the order of 1 and attention averages them."""
SMALL, LARGE = (256, 32), (512, 64)


@pytest.fixture
def hopper(platform) -> None:
    """Skips where Hopper's kernels cannot run."""
    if platform.name == "gpu" and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("this GPU is no Hopper")
    if not platform.library.has(HOPPERS[0]):
        pytest.skip("latent_attention_sm90 was not built for this GPU")


@pytest.fixture(params=KERNELS + HOPPERS)
def kernel(request):
    if request.param in HOPPERS:
        request.getfixturevalue("hopper")
    return request.param


@pytest.mark.parametrize(
    ("dims", "heads", "parts"),
    [
        (SMALL, 3, [(0, 1), (63, 2), (64, 1), (31, 5)]),
        (SMALL, 40, [(70, 2)]),
        (LARGE, 16, [(65, 1), (0, 1)]),
        (LARGE, 20, [(30, 2)]),
    ],
)
def test_attention_over_latents_is_the_exact_one(platform, kernel, dims, heads, parts):
    case = latent_case(parts, heads, dims, platform.device)
    found, exact = case.attend(platform.library, kernel), exact_latent_attention(case)
    assert distance(found, exact) < TOLERANCE
    assert float((found.double().cpu() - exact).abs().max()) < WORST


def test_spans_are_joined(platform, kernel):
    case = latent_case([(1022, 3), (platform.pick(1100, 9000), 1)], 1, SMALL, platform.device)
    assert distance(case.attend(platform.library, kernel), exact_latent_attention(case)) < TOLERANCE


def test_division_kernel_company_and_chunk_change_no_bit(platform, reseeded):
    case = latent_case([(1021, 4), (20, 3)], 5, SMALL, platform.device)
    together = case.attend(platform.library, "latent_prefill")
    for kernel, row_tile, halves in (("latent_decode", 16, 3), ("latent_prefill", 32, 2), ("latent_decode", 64, 4)):
        reseeded(row_tile)
        assert same_bits(case.attend(platform.library, kernel, Division(row_tile, halves)), together)
    for seed, (sequence, first, count) in enumerate([(0, 1, 3), (0, 3, 1), (1, 1, 2)]):
        reseeded(seed + 1)
        begin = case.begin(sequence) + first
        for kernel in KERNELS:
            part = case.alone(sequence, first, count).attend(platform.library, kernel)
            assert same_bits(part, together[begin : begin + count]), (kernel, sequence, first, count)


def test_large_latents_have_the_same_bits_in_both_kernels(platform):
    case = latent_case([(60, 6), (3, 1)], 12, LARGE, platform.device)
    decoded = case.attend(platform.library, "latent_decode", Division(16, 2))
    assert same_bits(case.attend(platform.library, "latent_prefill", Division(64, 4)), decoded)


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize(
    ("parts", "heads", "dims"),
    [
        ([(1021, 4), (20, 3)], 5, SMALL),  # spans, a sequence that sees one and rows of one that see two
        ([(0, 2), (130, 1), (2, 40)], 3, SMALL),  # tiles of several sequences for one block
        ([(62, 3), (129, 1)], 12, LARGE),
    ],
)
def test_hoppers_kernels_have_the_bits_of_the_others_whatever_the_order_of_threads(
    platform, reseeded, parts, heads, dims
):
    case = latent_case(parts, heads, dims, platform.device)
    everywhere, hoppers = case.attend(platform.library, "latent_decode"), []
    for seed in range(2):
        reseeded(seed)
        hoppers += [case.attend(platform.library, kernel) for kernel in HOPPERS]
    assert all(same_bits(one, hoppers[0]) for one in hoppers)
    if platform.name == "emulated":
        assert same_bits(hoppers[0], everywhere)
    assert distance(hoppers[0], everywhere) < TOLERANCE  # matrix units may round otherwise


@pytest.mark.usefixtures("hopper")
def test_company_and_chunk_change_no_bit_on_hopper(platform, reseeded):
    case = latent_case([(1021, 4), (20, 3)], 17, SMALL, platform.device)
    together = case.attend(platform.library, "latent_sm90_prefill")
    for seed, (sequence, first, count) in enumerate([(0, 1, 3), (0, 3, 1), (1, 1, 2)]):
        reseeded(seed + 1)
        begin = case.begin(sequence) + first
        for kernel in HOPPERS:
            part = case.alone(sequence, first, count).attend(platform.library, kernel)
            assert same_bits(part, together[begin : begin + count]), (kernel, sequence, first, count)


@pytest.mark.usefixtures("hopper")
def test_hoppers_kernels_are_divided_in_one_way(platform):
    case = latent_case([(40, 2)], 4, SMALL, platform.device)
    for kernel in HOPPERS:
        assert same_bits(case.attend(platform.library, kernel, Division(64, 4)), case.attend(platform.library, kernel))
        for division in (Division(32, 0), Division(0, 3)):
            with pytest.raises(SpliceError, match="expected 0 or 64 and 0 or 4"):
                case.attend(platform.library, kernel, division)


@pytest.mark.parametrize("block_tokens", [16, 256])
def test_the_size_of_blocks_changes_no_bit(platform, kernel, block_tokens):
    case = latent_case([(290, 2)], 2, SMALL, platform.device)
    table = case.rows.block_tables[0, :10].long()
    flat = torch.full((-(-292 // block_tokens) * block_tokens, sum(SMALL)), float("nan"), dtype=torch.bfloat16)
    flat[:292] = case.cache[table, 1, 0, 0].reshape(-1, sum(SMALL))[:292].cpu()
    other = torch.full((2, len(flat) // block_tokens, 1, 1, block_tokens, sum(SMALL)), float("nan"))
    other[1] = flat.view(other.shape[1:]).float()
    tables = torch.arange(other.shape[1], dtype=torch.int32).unsqueeze(0).to(platform.device)
    rows = dataclasses.replace(case.rows, block_tables=tables)
    moved = dataclasses.replace(
        case, cache=other.bfloat16().transpose(0, 1).contiguous().to(platform.device), rows=rows
    )
    assert same_bits(moved.attend(platform.library, kernel), case.attend(platform.library, kernel))


def test_bounds_that_are_too_high_and_sequences_without_rows_change_no_bit(platform, kernel):
    case = latent_case([(40, 2), (90, 1)], 4, SMALL, platform.device)
    exact, device = case.attend(platform.library, kernel), platform.device
    tables = torch.nn.functional.pad(case.rows.block_tables[[0, 0, 1, 1]], (0, 80)).contiguous()
    begins = torch.tensor([0, 2, 2, 3, 3], dtype=torch.int32, device=device)
    starts = torch.tensor([40, 7, 90, 0], dtype=torch.int32, device=device)
    wide = dataclasses.replace(case, rows=PagedRows(tables, begins, starts, 2500, 9))
    assert same_bits(wide.attend(platform.library, kernel), exact)


def test_a_result_is_written_where_it_is_wanted(platform):
    case = latent_case([(40, 2)], 4, SMALL, platform.device)
    arguments = (case.absorbed, case.rotated, case.cache, 1, case.rows, case.scale)
    wide = torch.full((4, 4, 256), float("nan"), dtype=torch.bfloat16, device=platform.device)
    attend_latents(platform.library, "latent_prefill", *arguments, out=wide[1:3])
    assert same_bits(wide[1:3], case.attend(platform.library, "latent_decode"))
    assert bool(wide[[0, 3]].isnan().all())
    with pytest.raises(SpliceError, match=r"out is of shape \(4, 4, 256\), expected \[2, 4, 256\]"):
        attend_latents(platform.library, "latent_prefill", *arguments, out=wide)


def test_memory_is_counted_and_demanded(platform):
    library = platform.library
    assert workspace_bytes(library, "latent_decode", 3, 4, 256, 1024) == 0
    assert workspace_bytes(library, "latent_decode", 3, 4, 256, 2049) == 3 * 4 * 3 * (256 + 2) * 4
    assert workspace_bytes(library, "latent_prefill", 3, 4, 512, 1024) == 0
    assert workspace_bytes(library, "latent_prefill", 3, 4, 512, 1025) % (64 * 512 * 4) == 0
    case = latent_case([(1100, 1)], 1, SMALL, platform.device)
    small = torch.empty(64, dtype=torch.uint8, device=platform.device)
    for kernel in KERNELS:
        with pytest.raises(SpliceError, match=r"workspace is 64 bytes, expected \d+ at least"):
            attend_latents(library, kernel, case.absorbed, case.rotated, case.cache, 1, case.rows, case.scale, small)


def test_what_no_kernel_takes_is_refused(platform, kernel):
    library = platform.library
    case = latent_case([(3, 1)], 2, (128, 32), platform.device)
    with pytest.raises(SpliceError, match=r"latents of 128 \+ 32, expected 512 \+ 64 or 256 \+ 32"):
        case.attend(library, kernel)
    case = latent_case([(3, 1)], 2, SMALL, platform.device, block_tokens=8)
    with pytest.raises(SpliceError, match="blocks of 8 tokens, expected 16"):
        case.attend(library, kernel)
    case = latent_case([(3, 1)], 2, SMALL, platform.device)
    for bad, words in (
        ({"absorbed": case.absorbed.float()}, r"absorbed is of torch.float32"),
        ({"rotated": case.rotated[:, :1]}, r"rotated is of shape \(1, 1, 32\), expected \[1, 2, 32\]"),
        ({"absorbed": case.absorbed.transpose(1, 2)}, r"absorbed is strided"),
        ({"cache": case.cache.float()}, r"kv_cache is of torch.float32"),
        ({"rows": dataclasses.replace(case.rows, max_context=1000)}, r"context of up to 1000 in block tables for 64"),
        ({"rows": dataclasses.replace(case.rows, max_query=1 << 30)}, r"2 heads of up to 1073741824 rows"),
        ({"rows": dataclasses.replace(case.rows, starts=case.rows.starts.long())}, r"starts is of torch.int64"),
    ):
        with pytest.raises(SpliceError, match=words):
            dataclasses.replace(case, **bad).attend(library, kernel)
    with pytest.raises(SpliceError, match="halves 5, expected 0 or "):
        case.attend(library, kernel, Division(0, 5))  # type: ignore[arg-type]
