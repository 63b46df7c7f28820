"""Matrix products: the exact ones rounded, and a row's bits the same whatever M and whichever tile. CUTLASS runs in no
emulator, so these need a GPU."""

from __future__ import annotations

import kernel_platform
import pytest
import torch
from closeness import distance, same_bits

from engine.ops.cuda.gemm import TILES, gemm
from engine.ops.cuda.library import Library
from engine.ops.cuda.structs import Gemm
from wire.errors import SpliceError

KERNELS = [(kernel, tile) for kernel, tiles in TILES.items() for tile in range(tiles)]
SHAPES = [(1, 64, 64), (3, 576, 576), (64, 1536, 576), (65, 128, 4096), (257, 1000, 200), (512, 6144, 4096)]
CUT_SUMS = 1e-4
"""Matrix units cut what they add to a sum where float32 would round it: 256 times by up to 2^-23 of it with k = 4096,
always towards zero, which is 1e-5 and more."""


@pytest.fixture
def library() -> Library:
    missing = kernel_platform.why_no_gpu()
    if missing:
        pytest.skip(missing)
    return Library()


def _operands(m: int, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(m + n + k)
    x, w = torch.randn(m, k, generator=generator), torch.randn(n, k, generator=generator) / k**0.5
    return tuple(part.bfloat16().cuda() for part in (x, w, torch.randn(n, generator=generator)))


def _runs_here(library: Library, kernel: str) -> None:
    if not library.has(kernel):
        pytest.skip(f"{kernel} was not built for this GPU")


@pytest.mark.gpu
@pytest.mark.parametrize(("kernel", "tile"), KERNELS)
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_gpu_products_are_the_exact_ones(library, kernel, tile, m, n, k):
    _runs_here(library, kernel)
    x, w, bias = _operands(m, n, k)
    exact = x.double().cpu() @ w.double().cpu().t()
    found = gemm(library, x, w, kernel=kernel, tile=tile)
    assert distance(found, exact) < 4e-3
    if kernel != "gemm_sm90" or tile == 0:
        assert distance(gemm(library, x, w, kernel=kernel, tile=tile, out_dtype=torch.float32), exact) < CUT_SUMS
    assert distance(gemm(library, x, w, bias, kernel=kernel, tile=tile), exact + bias.double().cpu()) < 4e-3


@pytest.mark.gpu
@pytest.mark.parametrize(("kernel", "tile"), KERNELS)
def test_gpu_rows_have_the_same_bits_whatever_m(library, kernel, tile):
    _runs_here(library, kernel)
    x, w, _ = _operands(300, 512, 1024)
    together = gemm(library, x, w, kernel=kernel, tile=tile)
    for first, count in ((0, 1), (299, 1), (17, 40), (100, 129)):
        part = gemm(library, x[first : first + count], w, kernel=kernel, tile=tile)
        assert same_bits(part, together[first : first + count]), (first, count)


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", list(TILES))
def test_gpu_tiles_give_the_same_bits(library, kernel):
    _runs_here(library, kernel)
    x, w, _ = _operands(70, 512, 4096)
    found = [gemm(library, x, w, kernel=kernel, tile=tile) for tile in range(TILES[kernel])]
    assert all(same_bits(one, found[0]) for one in found[1:])


@pytest.mark.gpu
def test_gpu_products_no_kernel_takes_are_refused(library):
    x, w, _ = _operands(4, 64, 64)
    _runs_here(library, "gemm_sm80")
    with pytest.raises(SpliceError, match="tile 9, expected 0 to 1"):
        gemm(library, x, w, kernel="gemm_sm80", tile=9)
    with pytest.raises(SpliceError, match="multiples of 8"):
        library.call("gemm_sm80", Gemm(m=1, n=12, k=64))
