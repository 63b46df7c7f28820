"""Grouped products: each row by its own expert's matrix, with the same bits in any tile, layout and company."""

from __future__ import annotations

import pytest
import torch
from closeness import distance, same_bits

from engine.ops.cuda.grouped_gemm import TILE_ROWS, grouped_gemm
from engine.ops.cuda.permutation import gather_rows, permute
from engine.ops.cuda.rows import gated_mul
from wire.errors import SpliceError

pytestmark = pytest.mark.usefixtures("poisoned")
ROUNDING = 4e-3
EXPERTS = 3
SHAPES = [(16, 8, 8), (16, 24, 40), (16, 136, 72), (16, 64, 200), (64, 136, 72), (128, 24, 200)]
"""(rows of a tile, n, k)"""


def _case(platform, drawn, tokens: int, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`x`, a stack of matrices, and ids among which the last expert has few and the first none at all."""
    ids = torch.where(torch.arange(2 * tokens) % 9 == 4, 2, 1).view(tokens, 2).to(platform.device)
    return drawn(tokens, k), drawn(EXPERTS, n, k, scale=k**-0.5), ids


def _exact(x: torch.Tensor, w: torch.Tensor, order) -> torch.Tensor:
    owners = torch.repeat_interleave(torch.arange(EXPERTS, device=x.device), order.counts.long())
    return torch.einsum("rk,rnk->rn", x[order.sources.long()].double(), w[owners].double())


@pytest.mark.parametrize(("tile_rows", "n", "k"), SHAPES)
def test_rows_are_multiplied_by_their_experts_matrix(platform, drawn, tile_rows, n, k):
    x, w, ids = _case(platform, drawn, 37, n, k)
    order = permute(platform.library, ids, EXPERTS, tile_rows)
    exact = _exact(x, w, order)
    found = grouped_gemm(platform.library, x, w, order, gather=True)
    assert distance(found, exact) < ROUNDING
    assert float((found.double() - exact).abs().max()) < 2 * ROUNDING * float(exact.abs().max())
    gathered = gather_rows(platform.library, x, order)
    assert same_bits(grouped_gemm(platform.library, gathered, w, order), found)
    bias = drawn(EXPERTS, n)
    owners = torch.repeat_interleave(torch.arange(EXPERTS, device=x.device), order.counts.long())
    biased = grouped_gemm(platform.library, x, w, order, bias, gather=True)
    assert distance(biased, exact + bias[owners].double()) < ROUNDING


def test_a_row_has_the_same_bits_in_any_tile_layout_and_company(platform, drawn, reseeded):
    x, w, ids = _case(platform, drawn, 75, 72, 136)
    order = permute(platform.library, ids, EXPERTS, 16)
    found = grouped_gemm(platform.library, x, w, order, gather=True)
    for seed, tile_rows in enumerate(TILE_ROWS):
        reseeded(seed + 5)
        again = permute(platform.library, ids, EXPERTS, tile_rows)
        assert same_bits(grouped_gemm(platform.library, x, w, again, gather=True), found)
    for token in (0, 40, 74):
        alone = permute(platform.library, ids[token : token + 1], EXPERTS, 16)
        row = grouped_gemm(platform.library, x[token : token + 1], w, alone, gather=True)
        assert same_bits(row[alone.places[0].long()], found[order.places[token].long()])
    single = ids[:, :1].contiguous()
    masked = permute(platform.library, single, EXPERTS, 16, max_rows=80)
    rows = grouped_gemm(platform.library, x, w, masked, gather=True)
    assert same_bits(rows[masked.places[:, 0].long()], found[order.places[:, 0].long()])


@pytest.mark.parametrize(
    ("tile_rows", "activation"), [(16, "silu"), (16, "gelu_tanh"), (16, "swiglu_oai"), (64, "silu"), (128, "silu")]
)
def test_an_activation_has_the_bits_of_the_gate_by_itself(platform, drawn, tile_rows, activation):
    x, w, ids = _case(platform, drawn, 21, 2 * 88, 72)
    order, bias = permute(platform.library, ids, EXPERTS, tile_rows), drawn(EXPERTS, 2 * 88)
    for added in (None, bias):
        wide = grouped_gemm(platform.library, x, w * 4, order, added, gather=True)
        fused = grouped_gemm(platform.library, x, w * 4, order, added, gather=True, activation=activation)
        assert same_bits(fused, gated_mul(platform.library, wide, activation))


def test_what_is_no_number_stays_in_its_own_row_and_column(platform, drawn):
    """Steps of k go beyond the end of rows here: what lies behind them belongs to others."""
    x, w, ids = _case(platform, drawn, 11, 24, 40)
    clean = grouped_gemm(platform.library, x, w, permute(platform.library, ids, EXPERTS, 16), gather=True)
    w[1, 6], w[2, 0], x[5] = torch.nan, torch.nan, torch.nan
    order = permute(platform.library, ids, EXPERTS, 16)
    found = grouped_gemm(platform.library, x, w, order, gather=True)
    wanted = clean.clone()
    wanted[: int(order.counts[1]), 6] = torch.nan
    wanted[int(order.offsets[2]) :, 0] = torch.nan
    wanted[order.places[5].long()] = torch.nan
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found.nan_to_num(), wanted.nan_to_num())


def test_rows_that_nobody_chose_are_neither_read_nor_written(platform, drawn):
    ids = torch.tensor([[1], [2]], device=platform.device)
    order = permute(platform.library, ids, EXPERTS, 16, max_rows=4)
    x = torch.full((EXPERTS * 4, 64), torch.nan, dtype=torch.bfloat16, device=platform.device)
    there = order.places.flatten().long()
    x[there] = drawn(2, 64)
    w = drawn(EXPERTS, 16, 64)
    w[0] = torch.nan
    found = grouped_gemm(platform.library, x, w, order)
    exact = torch.stack([x[row].double() @ w[expert].double().t() for row, expert in zip(there, (1, 2), strict=True)])
    assert distance(found[there], exact) < ROUNDING


def test_what_the_kernel_does_not_take_is_named(platform, drawn):
    library, (x, w, ids) = platform.library, _case(platform, drawn, 5, 24, 40)
    order, odd = permute(library, ids, EXPERTS, 16), permute(library, ids, EXPERTS, 32)
    for words, call in (
        ("tiles of 32 rows", lambda: grouped_gemm(library, x, w, odd, gather=True)),
        ("n of 16", lambda: grouped_gemm(library, x, w, order, gather=True, activation="silu")),
        ("activation is 'tanh'", lambda: grouped_gemm(library, x, w, order, gather=True, activation="tanh")),
        ("multiples of 8", lambda: grouped_gemm(library, x[:, :12], w[:, :, :12].contiguous(), order, gather=True)),
        ("x is of shape", lambda: grouped_gemm(library, x, w, order)),
        ("weight is of shape", lambda: grouped_gemm(library, x, w[:2], order, gather=True)),
        ("weight is strided", lambda: grouped_gemm(library, x, drawn(3, 40, 24).transpose(1, 2), order, gather=True)),
        ("bias is of torch.float32", lambda: grouped_gemm(library, x, w, order, drawn(3, 24).float(), gather=True)),
        ("from row to row", lambda: grouped_gemm(library, drawn(5, 44)[:, :40], w, order, gather=True)),
    ):
        with pytest.raises(SpliceError, match=words):
            call()
