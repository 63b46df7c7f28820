"""Products with quantised weights: with int8 activations the bits of this project's CPU kernels, with bfloat16 ones the
exact product rounded; in any company and by any tile."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from closeness import distance, same_bits
from quantised_cases import activations, depth_of, has_cpu_kernels, matrix_of, product_of, values_of

from engine.ops.cuda.block_pack import FILE_KINDS, NIBBLE_KINDS
from engine.ops.cuda.block_products import (
    TILE_ROWS,
    BlockProducts,
    BlockWeight,
    QuantisedRows,
    block_gemm,
    block_rows,
    pack_group_weight,
    pack_weight,
    quantise_rows,
    w4a16_gemm,
)
from engine.ops.weight_matrix import QuantizedMatrix
from wire.errors import SpliceError

KINDS = sorted(FILE_KINDS)
TILES = range(len(TILE_ROWS))
SUMS = 5e-6
"""Relative error of float32 sums; a weight rounded to bfloat16 would make it 500 times that."""
SHAPES = [
    (1, 8, 32),
    (3, 17, 96),
    (8, 40, 160),
    (9, 33, 640),
    (16, 16, 128),
    (17, 70, 224),
    (65, 130, 288),
    (70, 24, 1056),
]
"""Rows, columns, depth: ends of fragments, panels, slices, rounds and tiles."""


@pytest.fixture(autouse=True)
def _needs_a_reference(platform):
    if platform.name == "emulated" and not has_cpu_kernels():
        pytest.skip("the CPU kernels, which products are compared with, are not built")


def multiplied(platform, x: torch.Tensor, weight: BlockWeight, bias=None, tile=None, dtype=torch.float32):
    """Into poisoned memory with gaps between rows."""
    room = torch.full((len(x), weight.n + 5), torch.nan, dtype=dtype, device=platform.device)
    rows, out = quantise_rows(platform.library, x.to(platform.device)), room[:, : weight.n]
    added = None if bias is None else bias.to(platform.device)
    block_gemm(platform.library, rows, weight, added, tile=tile, out_dtype=dtype, out=out)
    assert bool(room[:, weight.n :].isnan().all())
    return out.cpu()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_products_have_the_bits_of_the_cpu(platform, kind, m, n, k):
    k = depth_of(kind, k)
    matrix, x = matrix_of(n, k, kind), activations(m, k)
    assert same_bits(multiplied(platform, x, pack_weight(matrix, platform.device)), product_of(x, matrix))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile", TILES)
def test_every_tile_gives_the_same_bits(platform, reseeded, kind, tile):
    for seed, (m, n, k) in enumerate([(5, 50, 672), (67, 40, 160)]):
        reseeded(seed + 1)
        depth = depth_of(kind, k)
        matrix, x = matrix_of(n, depth, kind), activations(m, depth)
        weight = pack_weight(matrix, platform.device)
        assert same_bits(multiplied(platform, x, weight, tile=tile), product_of(x, matrix)), (m, n, k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bias_and_rounding_are_the_cpus(platform, dtype):
    matrix, x = matrix_of(40, 256, "q4_1"), activations(9, 256, dtype)
    bias = torch.randn(40, generator=torch.Generator().manual_seed(4)).to(dtype)
    found = multiplied(platform, x, pack_weight(matrix, platform.device), bias, dtype=dtype)
    assert same_bits(found, product_of(x, matrix, bias))


def test_a_row_has_the_same_bits_alone_and_in_any_company(platform, reseeded):
    matrix, x = matrix_of(48, 640, "q4_1"), activations(70, 640)
    weight = pack_weight(matrix, platform.device)
    together = multiplied(platform, x, weight)
    for seed, (first, count) in enumerate([(0, 1), (69, 1), (3, 8), (20, 13), (1, 66)]):
        reseeded(seed + 1)
        part = multiplied(platform, x[first : first + count], weight)
        assert same_bits(part, together[first : first + count]), (first, count)


def test_what_fills_up_is_never_used(platform):
    matrix, x = matrix_of(20, 160, "q4_1"), activations(18, 160)
    weight, rows = pack_weight(matrix, platform.device), quantise_rows(platform.library, x.to(platform.device))
    rows.scales[:, :, 5:] = torch.nan
    for tile in TILES:
        found = block_gemm(platform.library, rows, weight, tile=tile, out_dtype=torch.float32)
        assert same_bits(found.cpu(), product_of(x, matrix)), tile


def test_infinity_zero_and_the_smallest_rows_come_out_as_on_the_cpu(platform):
    x = activations(6, 96)
    x[0, 40], x[1, 3] = torch.inf, torch.nan
    x[2], x[3] = 0.0, -0.0
    x[4] *= 2.0**-103  # on both sides of where a block counts as zeros
    x[5] *= 2.0**120
    matrix = matrix_of(20, 96, "q8_0")
    found = multiplied(platform, x, pack_weight(matrix, platform.device))
    assert same_bits(found, product_of(x, matrix))
    assert bool(found[:2].isnan().all())
    assert not found[2:].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantised_rows_are_the_documented_ones(platform, dtype):
    x = activations(5, 96, dtype)[:, :64]
    x[1] *= 1e-30
    found = quantise_rows(platform.library, x.to(platform.device))
    blocks = x.float().reshape(5, 2, 32).numpy()
    largest = np.abs(blocks).max(axis=2)
    largest[largest < np.float32(2.0**-100)] = np.inf
    inverse = (np.float32(127) / largest)[:, :, None]
    quants = np.rint(blocks * inverse).astype(np.int64)
    scale = np.where(np.isinf(largest), np.float32(0), largest / np.float32(127)).astype(np.float32)
    assert bool((found.quants.cpu() == torch.from_numpy(quants.reshape(5, 64))).all())
    assert same_bits(found.scales[0, :, :2].cpu(), torch.from_numpy(scale))
    assert same_bits(found.scales[1, :, :2].cpu(), torch.from_numpy(scale * quants.sum(axis=2).astype(np.float32)))


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_near_those_of_the_values(platform, kind):
    matrix, x = matrix_of(40, 512, kind), activations(12, 512)
    exact = x.double() @ values_of(matrix).double().t()
    assert distance(multiplied(platform, x, pack_weight(matrix, platform.device)), exact) < 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_values_of_the_matrix(platform, kind):
    matrix, ids = matrix_of(37, depth_of(kind, 160), kind), torch.tensor([36, 0, 8, 15, 16, 0])
    weight = pack_weight(matrix, platform.device)
    found = block_rows(platform.library, weight, ids.to(platform.device)).cpu()
    assert same_bits(found, values_of(matrix)[ids])
    none = block_rows(platform.library, weight, torch.tensor([37, -1]).to(platform.device))
    assert bool(none.isnan().all())


def nibbles(platform, kind: str, n: int, k: int) -> tuple[BlockWeight, torch.Tensor]:
    """A weight of four bits and its values in float64."""
    if kind != "groups":
        matrix = matrix_of(n, k, kind)
        return pack_weight(matrix, platform.device), values_of(matrix).double()
    generator = np.random.default_rng(n + k)
    quants, zeros = (generator.integers(0, 16, (n, size), dtype=np.uint8) for size in (k, k // 128))
    scales = generator.uniform(-0.01, 0.01, (n, k // 128)).astype(np.float16)
    values = (quants.astype(np.float64) - zeros.astype(np.float64).repeat(128, axis=1)) * scales.repeat(128, axis=1)
    return pack_group_weight(quants, scales, zeros, platform.device), torch.from_numpy(values)


def test_every_scale_of_mxfp4_is_kept(platform):
    exponents = np.arange(256, dtype=np.uint8)[:, None]
    blocks = np.concatenate((exponents, np.tile(np.arange(16, dtype=np.uint8) * 17, (256, 1))), axis=1)
    matrix = QuantizedMatrix("mxfp4", (256, 32), blocks)
    ids = torch.arange(255)
    weight = pack_weight(matrix, platform.device)
    found = block_rows(platform.library, weight, ids.to(platform.device)).cpu()
    assert same_bits(found, values_of(matrix)[:255])
    x = activations(2, 32)
    assert same_bits(multiplied(platform, x, weight), product_of(x, matrix))


@pytest.mark.parametrize("kind", sorted(NIBBLE_KINDS))
@pytest.mark.parametrize("tile", TILES)
def test_products_in_bfloat16_round_no_weight(platform, kind, tile):
    for m, n, k in ((3, 17, 128), (65, 70, 640), (18, 33, 256)):
        depth = depth_of(kind, k)
        weight, values = nibbles(platform, kind, n, depth)
        x = activations(m, depth, torch.bfloat16).to(platform.device)
        found = w4a16_gemm(platform.library, x, weight, tile=tile, out_dtype=torch.float32)
        exact = x.double().cpu() @ values.t()
        assert distance(found, exact) < SUMS, (m, n, k)
        assert float((found.cpu() - exact).abs().max() / exact.abs().max()) < SUMS


def test_depths_that_no_slice_is_full_of_are_multiplied_in_bfloat16(platform):
    weight, values = nibbles(platform, "q4_1", 19, 160)
    x = activations(7, 192, torch.bfloat16)[:, 32:]
    wide = torch.full((7, 200), torch.nan, dtype=torch.bfloat16)
    wide[:, 8:168] = x
    found = w4a16_gemm(platform.library, wide.to(platform.device)[:, 8:168], weight, out_dtype=torch.float32)
    assert distance(found, x.double() @ values.t()) < SUMS


@pytest.mark.parametrize("kind", sorted(NIBBLE_KINDS))
def test_in_bfloat16_too_tiles_and_company_change_no_bit(platform, reseeded, kind):
    weight, _ = nibbles(platform, kind, 40, 768)
    x = activations(67, 768, torch.bfloat16).to(platform.device)
    together = w4a16_gemm(platform.library, x, weight, tile=2)
    for seed, (first, count, tile) in enumerate([(0, 67, 1), (5, 9, 1), (66, 1, 0), (40, 20, 2)]):
        reseeded(seed + 1)
        part = w4a16_gemm(platform.library, x[first : first + count], weight, tile=tile)
        assert same_bits(part, together[first : first + count]), (first, count, tile)


def test_parts_of_different_kinds_are_one_weight_as_on_the_cpu(platform):
    parts = [matrix_of(24, 96, "q4_1"), matrix_of(8, 96, "q4_1"), matrix_of(17, 96, "q8_0")]
    ops = BlockProducts(platform.library, platform.device)
    weight = ops.pack(*parts)
    x = activations(3, 96, torch.bfloat16)
    bias = torch.randn(49, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = ops.linear(x.to(platform.device), weight, bias.to(platform.device)).cpu()
    columns = torch.split(bias, [24, 8, 17])
    expected = [product_of(x, part, own) for part, own in zip(parts, columns, strict=True)]
    assert [part.n for part in weight] == [32, 17]
    assert same_bits(found, torch.cat(expected, dim=1))
    logits = ops.lm_head(x.to(platform.device), weight).cpu()
    assert same_bits(logits, torch.cat([product_of(x.float(), part) for part in parts], dim=1))
    (alone,) = ops.pack(parts[2])
    assert same_bits(ops.rows((alone,), torch.tensor([16]).to(platform.device)).cpu(), values_of(parts[2])[16:])


def test_the_operations_go_with_bfloat16_activations(platform):
    matrix, x = matrix_of(24, 128, "q4_0"), activations(4, 128, torch.bfloat16)
    ops = BlockProducts(platform.library, platform.device, "bfloat16")
    found = ops.linear(x.to(platform.device), ops.pack(matrix), None)
    assert found.dtype == torch.bfloat16
    assert distance(found, x.double() @ values_of(matrix).double().t()) < 4e-3


def test_no_rows_are_no_error(platform):
    weight = pack_weight(matrix_of(16, 32, "q8_0"), platform.device)
    empty = torch.empty(0, 32, device=platform.device)
    assert block_gemm(platform.library, quantise_rows(platform.library, empty), weight).shape == (0, 16)
    nibbles = pack_weight(matrix_of(16, 32, "q4_0"), platform.device)
    assert w4a16_gemm(platform.library, empty.bfloat16(), nibbles).shape == (0, 16)


def test_what_no_kernel_takes_is_refused_by_name(platform, drawn):
    library, device = platform.library, platform.device
    matrix = matrix_of(16, 64, "q4_0")
    weight, x = pack_weight(matrix, device), drawn(3, 64)
    rows = quantise_rows(library, x)
    for call, message in (
        (lambda: pack_weight(QuantizedMatrix("q2_k", (16, 64), matrix.blocks), device), "kind is 'q2_k', expected one"),
        (lambda: pack_weight(QuantizedMatrix("q4_0", (16, 48), matrix.blocks), device), "columns a multiple of 32"),
        (lambda: pack_weight(QuantizedMatrix("q8_0", (16, 64), matrix.blocks), device), "q8_0 of"),
        (lambda: quantise_rows(library, drawn(3, 40)), "x is of 40 columns, expected a multiple of 32"),
        (lambda: quantise_rows(library, x.to(torch.float16)), "x is of torch.float16"),
        (lambda: quantise_rows(library, drawn(3, 68)[:, 4:]), "x is"),
        (lambda: block_gemm(library, quantise_rows(library, drawn(3, 96)), weight), r"x.quants is of shape \(3, 96\)"),
        (lambda: block_gemm(library, QuantisedRows(rows.quants, rows.scales[:1]), weight), "x.scales is"),
        (lambda: block_gemm(library, rows, weight, drawn(8)), r"bias is of shape \(8,\), expected \[16\]"),
        (lambda: block_gemm(library, rows, BlockWeight(weight.data, "q2_k", 16, 64)), "weight.kind is 'q2_k'"),
        (lambda: block_gemm(library, rows, weight, tile=3), "tile 3, expected 0 to 2"),
        (lambda: block_gemm(library, rows, weight, out_dtype=torch.float16), "out_dtype is"),
        (lambda: block_gemm(library, rows, weight, out=drawn(2, 16)), r"out is of shape \(2, 16\), expected \[3, 16\]"),
        (lambda: block_gemm(library, rows, nibbles(platform, "groups", 16, 128)[0]), "x.quants is of shape"),
        (lambda: w4a16_gemm(library, x.float(), weight), "x is of torch.float32"),
        (lambda: w4a16_gemm(library, x, pack_weight(matrix_of(16, 64, "q8_0"), device)), "weight is q8_0"),
        (lambda: block_rows(library, weight, torch.tensor([1.0], device=device)), "ids is of torch.float32"),
        (lambda: BlockProducts(library, device).pack(x), "part is a tensor"),
    ):
        with pytest.raises(SpliceError, match=message):
            call()


def test_columns_of_mixed_kinds_cannot_be_looked_up(platform):
    ops = BlockProducts(platform.library, platform.device)
    weight = ops.pack(matrix_of(8, 32, "q4_0"), matrix_of(8, 32, "q8_0"))
    with pytest.raises(SpliceError, match="expected a matrix of one kind"):
        ops.rows(weight, torch.tensor([0]))
