"""bf16 activations: rounded rows times rounded weights, bit for bit, on every machine, for any rows and threads."""

from __future__ import annotations

import pytest
import torch
from quantised_weights import KINDS, packed, random_blocks, values_of

from engine._native import Kernels, PackedLinear, supported_isas

SHAPES = [(1, 1, 1), (1, 2, 130), (2, 1, 17), (5, 3, 100), (13, 2, 40), (97, 1, 20), (200, 2, 50)]
"""Rows, depth in units of what a type asks for, columns."""


def multiply(x: torch.Tensor, weight: PackedLinear, isa: str = "auto", threads: int = 1, *, bf16: bool) -> torch.Tensor:
    out = torch.full((len(x), weight.n), torch.nan)
    Kernels(isa, threads).linear(out, x, weight, None, bf16=bf16)
    return out


def as_bf16(values: torch.Tensor) -> torch.Tensor:
    return values.bfloat16().float()


def in_float32(weight: torch.Tensor) -> PackedLinear:
    matrix = PackedLinear(*weight.shape, "float32")
    matrix.load(weight.contiguous())
    return matrix


def rows(m: int, k: int) -> torch.Tensor:
    x = torch.randn(m, k + 3, generator=torch.Generator().manual_seed(m + k))[:, :k]  # rows with gaps between them
    x[:, :32] *= 1e-3
    return x


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_rounded_rows_and_rounded_values_in_float32(kind: str, isa: str) -> None:
    for m, units, n in SHAPES:
        k = units * (256 if kind.endswith("k") else 96)
        blocks, x = random_blocks(n, k, kind), rows(m, k)
        values = torch.from_numpy(values_of(blocks, kind))
        expected = multiply(as_bf16(x), in_float32(as_bf16(values)), isa, bf16=False)
        assert torch.equal(multiply(x, packed(blocks, k, kind), isa, bf16=True), expected), (m, k, n)


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_weights_that_are_no_quants_stay_what_they_are(kind: str, isa: str) -> None:
    for m, k, n in [(1, 33, 40), (7, 300, 20), (97, 64, 17)]:
        weight = torch.randn(n, k, generator=torch.Generator().manual_seed(n))
        matrix, x = PackedLinear(n, k, kind), rows(m, k)
        matrix.load(weight if kind == "float32" else weight.bfloat16())
        if (isa, kind) != ("amx", "bfloat16"):  # whose sums have an order of their own: test_native_bf16_tiles.py
            assert torch.equal(multiply(x, matrix, isa, bf16=True), multiply(as_bf16(x), matrix, isa, bf16=False))
        assert not torch.equal(multiply(x, matrix, isa, bf16=True), multiply(x, matrix, isa, bf16=False))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_alone_and_on_any_number_of_threads(kind: str) -> None:
    k = 512
    weight, x = packed(random_blocks(200, k, kind), k, kind), rows(110, k)
    together = multiply(x, weight, bf16=True)
    for row in (0, 5, 96, 109):
        assert torch.equal(multiply(x[row : row + 1], weight, bf16=True)[0], together[row])
    for threads in (2, 3):
        assert torch.equal(multiply(x, weight, threads=threads, bf16=True), together)


@pytest.mark.parametrize("isa", supported_isas())
def test_ties_go_to_even_and_what_is_no_number_stays_so(isa: str) -> None:
    one = in_float32(torch.ones(1, 1))
    bits = [0x3F808000, 0x3F818000, 0x3F80FFFF, 0x7F7FFFFF, 0x7F800000, 0x7FFFFFFF, 0xFF800001, 0x00018000, 0x80000001]
    x = torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32)
    found = torch.cat([multiply(value.view(1, 1), one, isa, bf16=True)[0] for value in x])
    assert torch.equal(found.isnan(), x.isnan())
    assert torch.equal(found[~x.isnan()], as_bf16(x)[~x.isnan()])


def test_activations_are_of_one_type() -> None:
    one = in_float32(torch.ones(1, 1))
    with pytest.raises(ValueError, match="one type"):
        Kernels("auto", 1).linear(torch.empty(1, 1), torch.ones(1, 1), one, None, int8=True, bf16=True)
