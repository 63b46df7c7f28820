"""Products of e4m3 codes: those of the exact values, and a row's bits the same whatever M and whichever tile.

CUTLASS runs in no emulator, so these need a GPU."""

from __future__ import annotations

import kernel_platform
import pytest
import torch
from closeness import distance, same_bits
from fp8_cases import ROUNDING, SCALINGS, on_device, wide_operands

from engine.ops.cuda.fp8 import FP8_TILES, gemm_fp8
from engine.ops.cuda.fp8_reference import Fp8Matrix, activation_values, quantise_rows, quantise_weight, weight_values
from engine.ops.cuda.library import Library

SHAPES = [(1, 64, 64), (3, 576, 576), (64, 1536, 576), (65, 128, 4096), (257, 1000, 208), (512, 6144, 4096)]
BLOCK_SHAPES = [(m, n, -(-k // 128) * 128) for m, n, k in SHAPES]
MATRIX_UNITS = {0: 1e-3, 1: 1e-3, 2: 3e-2, 3: 3e-2}
"""What summing in the matrix units may cost beside `ROUNDING`, by tile: up to 2 % where they sum all of 4096
(DeepSeek-V3, arXiv 2412.19437, section 3.3.2)."""


@pytest.fixture
def library() -> Library:
    missing = kernel_platform.why_no_gpu()
    if missing:
        pytest.skip(missing)
    return Library()


def _runs_here(library: Library, kernel: str) -> None:
    if not library.has(kernel):
        pytest.skip(f"{kernel} was not built for this GPU")


def _codes(m: int, n: int, k: int, scaling: str) -> tuple[Fp8Matrix, Fp8Matrix, torch.Tensor, torch.Tensor]:
    """Both operands and a bias on the GPU, and the exact product of what the codes stand for."""
    x, w, bias = wide_operands(m, n, k)
    one = (x.float().abs().amax() / 448.0).view(1)
    rows = quantise_rows(x, scaling, one if scaling == "tensor" else None)
    weight = quantise_weight(w, scaling)
    exact = activation_values(rows) @ weight_values(weight).t()
    device = torch.device("cuda")
    return on_device(rows, device), on_device(weight, device), bias.to(device), exact


def _kernel(scaling: str) -> str:
    return "gemm_fp8_blocks_sm90" if scaling == "blocks" else "gemm_fp8_sm90"


@pytest.mark.gpu
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_gpu_products_of_codes_are_the_exact_ones(library, scaling, shape):
    kernel = _kernel(scaling)
    _runs_here(library, kernel)
    m, n, k = BLOCK_SHAPES[shape] if scaling == "blocks" else SHAPES[shape]
    x, weight, bias, exact = _codes(m, n, k, scaling)
    for tile in range(FP8_TILES[kernel]):
        near = ROUNDING + MATRIX_UNITS[tile]
        assert distance(gemm_fp8(library, x, weight, tile=tile), exact) < near, tile
        assert distance(gemm_fp8(library, x, weight, bias, tile=tile), exact + bias.double().cpu()) < near, tile


@pytest.mark.gpu
@pytest.mark.parametrize(("of_x", "of_weight"), [("rows", "tensor"), ("tensor", "rows")])
def test_gpu_each_operand_has_its_own_scaling(library, of_x, of_weight):
    _runs_here(library, "gemm_fp8_sm90")
    x, w, bias = wide_operands(70, 136, 256)
    rows = quantise_rows(x, of_x, torch.tensor([0.01]) if of_x == "tensor" else None)
    weight = quantise_weight(w, of_weight)
    exact = activation_values(rows) @ weight_values(weight).t() + bias.double()
    device = torch.device("cuda")
    for tile in range(FP8_TILES["gemm_fp8_sm90"]):
        found = gemm_fp8(library, on_device(rows, device), on_device(weight, device), bias.to(device), tile=tile)
        assert distance(found, exact) < ROUNDING + MATRIX_UNITS[tile]


@pytest.mark.gpu
@pytest.mark.parametrize("scaling", SCALINGS)
def test_gpu_rows_of_codes_have_the_same_bits_whatever_m_and_tile(library, scaling):
    kernel = _kernel(scaling)
    _runs_here(library, kernel)
    x, weight, bias, _ = _codes(300, 512, 1024, scaling)
    for tile in range(FP8_TILES[kernel]):
        together = gemm_fp8(library, x, weight, bias, tile=tile)
        for first, count in ((0, 1), (296, 4), (16, 40), (100, 129)):
            part = _rows(x, first, count)
            assert same_bits(gemm_fp8(library, part, weight, bias, tile=tile), together[first : first + count])
    found = [gemm_fp8(library, x, weight, bias, tile=tile) for tile in range(FP8_TILES[kernel])]
    for first in range(0, len(found), 2):
        assert same_bits(found[first], found[first + 1])


def _rows(x: Fp8Matrix, first: int, count: int) -> Fp8Matrix:
    """Some of them, as if they had been quantised by themselves."""
    codes = x.codes[first : first + count]
    if x.scaling == "blocks":
        return Fp8Matrix(codes, x.scales[:, first : first + count], x.scaling)
    scales = x.scales if x.scaling == "tensor" else x.scales[first : first + count]
    return Fp8Matrix(codes, scales, x.scaling)


@pytest.mark.gpu
def test_gpu_what_is_beyond_the_last_row_of_scales_does_not_matter(library):
    _runs_here(library, "gemm_fp8_blocks_sm90")
    x, weight, _, exact = _codes(5, 256, 512, "blocks")
    padded = torch.full((4, 8), float("nan"), device="cuda")
    padded[:, :5] = x.scales
    for tile in range(2):
        found = gemm_fp8(library, Fp8Matrix(x.codes, padded[:, :5], "blocks"), weight, tile=tile)
        assert distance(found, exact) < ROUNDING + MATRIX_UNITS[tile]
