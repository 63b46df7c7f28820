"""Grouped products on Hopper: the exact ones rounded, and a row's bits the same in any company. CUTLASS runs in no
emulator, so these need a GPU."""

from __future__ import annotations

import kernel_platform
import pytest
import torch
from closeness import distance, same_bits

from engine.ops.cuda.experts import ExpertStacks, experts
from engine.ops.cuda.grouped_sm90 import TILES, Scales, grouped_gemm_sm90
from engine.ops.cuda.library import Library
from engine.ops.cuda.permutation import gather_rows, permute
from wire.errors import ErrorCode, SpliceError

EXPERTS = 6


@pytest.fixture
def library() -> Library:
    missing = kernel_platform.why_no_gpu()
    if missing:
        pytest.skip(missing)
    found = Library()
    if not found.has("grouped_sm90_gemm"):
        pytest.skip("grouped_sm90 was not built for this GPU")
    return found


def _drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16().cuda()


def _choices(tokens: int, top_k: int) -> torch.Tensor:
    """Of all experts but the last."""
    generator = torch.Generator().manual_seed(tokens)
    return torch.stack([torch.randperm(EXPERTS - 1, generator=generator)[:top_k] for _ in range(tokens)]).cuda()


@pytest.mark.gpu
@pytest.mark.parametrize("tile", range(TILES))
@pytest.mark.parametrize(("tokens", "top_k", "n", "k"), [(1, 1, 64, 64), (7, 3, 200, 136), (300, 2, 1536, 2048)])
def test_gpu_grouped_products_are_the_exact_ones(library, tile, tokens, top_k, n, k):
    x, weight = _drawn(tokens, k, seed=1), _drawn(EXPERTS, n, k, seed=2) / 8
    order = permute(library, _choices(tokens, top_k), EXPERTS, 16)
    owners = torch.repeat_interleave(torch.arange(EXPERTS), order.counts.cpu().long())
    rows = gather_rows(library, x, order)
    found = grouped_gemm_sm90(library, rows, weight, order, tile=tile).cpu()
    for expert in range(EXPERTS):
        own = owners == expert
        exact = rows.cpu()[own].double() @ weight[expert].double().cpu().t()
        assert distance(found[own], exact) < 4e-3


@pytest.mark.gpu
@pytest.mark.parametrize("tile", range(TILES))
def test_gpu_masked_rows_give_the_bits_of_contiguous_ones(library, tile):
    x, weight, ids = _drawn(50, 256, seed=1), _drawn(EXPERTS, 512, 256, seed=2), _choices(50, 2)
    found = []
    for max_rows in (None, 64):
        order = permute(library, ids, EXPERTS, 16, max_rows)
        rows = gather_rows(library, x, order)
        found.append(grouped_gemm_sm90(library, rows, weight, order, tile=tile)[order.places.long()])
    assert same_bits(*found)


@pytest.mark.gpu
@pytest.mark.parametrize("tile", range(TILES))
def test_gpu_products_of_codes_are_scaled_by_rows(library, tile):
    """Scales of x begin at any row, those of weights at a multiple of 8."""
    if not library.has("grouped_fp8_gemm"):
        pytest.skip("grouped_fp8_sm90 was not built for this GPU")
    tokens, n, k = 61, 200, 400
    ids, weight = _choices(tokens, 3), _drawn(EXPERTS, n, k, seed=2).to(torch.float8_e4m3fn)
    order = permute(library, ids, EXPERTS, 16)
    x = _drawn(order.rows, k, seed=1).to(torch.float8_e4m3fn)
    scales = Scales(_drawn(order.rows, seed=3).float(), _drawn(EXPERTS, n, seed=4).float())
    found = grouped_gemm_sm90(library, x, weight, order, scales, tile=tile).cpu()
    owners = torch.repeat_interleave(torch.arange(EXPERTS), order.counts.cpu().long())
    wide = [part.double().cpu() for part in (x, weight, scales.x, scales.weight)]
    exact = torch.einsum("rk,rnk->rn", wide[0], wide[1][owners]) * wide[2].unsqueeze(1) * wide[3][owners]
    assert distance(found, exact) < 4e-3
    alone = permute(library, ids[:1], EXPERTS, 16)
    rows = order.places[0].sort().values.long()
    own = Scales(scales.x[rows].contiguous(), scales.weight)
    part = grouped_gemm_sm90(library, x.view(torch.uint8)[rows].view(x.dtype), weight, alone, own, tile=tile)
    assert same_bits(part.cpu(), found[rows.cpu()])


@pytest.mark.gpu
def test_gpu_a_tokens_row_is_the_same_in_any_company(library):
    """Forty tokens take tile 0, three hundred tile 1."""
    x, ids, weights = _drawn(300, 256, seed=1), _choices(300, 2), torch.rand(300, 2, device="cuda")
    packed = ExpertStacks(_drawn(EXPERTS, 1024, 256, seed=2) / 16, _drawn(EXPERTS, 256, 512, seed=3) / 16)
    together = experts(library, x, ids, weights, packed, "silu", kernel="grouped_sm90")
    for own in (slice(0, 1), slice(17, 57), slice(299, 300)):
        part = experts(library, x[own], ids[own], weights[own], packed, "silu", kernel="grouped_sm90")
        assert same_bits(part, together[own]), own
    other = experts(library, x, ids, weights, packed, "silu")
    assert distance(together, other) < 8e-3


def test_experts_without_the_hopper_kernel_or_with_biases_say_so(platform, drawn):
    ids, weights = torch.zeros(2, 1, dtype=torch.int64, device=platform.device), drawn(2, 1, dtype=torch.float32)
    packed = ExpertStacks(drawn(2, 16, 8), drawn(2, 8, 8), drawn(2, 16), drawn(2, 8))
    with pytest.raises(SpliceError, match="packed is with biases"):
        experts(platform.library, drawn(2, 8), ids, weights, packed, "silu", kernel="grouped_sm90")
    with pytest.raises(SpliceError, match="kernel is 'triton'"):
        experts(platform.library, drawn(2, 8), ids, weights, packed, "silu", kernel="triton")
    if platform.library.has("grouped_sm90_gemm"):
        return
    plain = ExpertStacks(packed.gate_up, packed.down)
    with pytest.raises(SpliceError, match="built without grouped_sm90") as caught:
        experts(platform.library, drawn(2, 8), ids, weights, plain, "silu", kernel="grouped_sm90")
    assert caught.value.code is ErrorCode.MISSING_PART
