"""bf16 weights times bf16 activations on AMX: the documented order of its tiles, the same for any number of rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from engine._native import Kernels, PackedLinear, supported_isas

pytestmark = pytest.mark.skipif(
    "amx" not in supported_isas(), reason="this machine has no AMX; `make test-isa` runs it under emulation"
)

Floats = npt.NDArray[np.float32]


def multiply(x: torch.Tensor, weight: PackedLinear, isa: str = "amx", threads: int = 1) -> torch.Tensor:
    out = torch.full((len(x), weight.n), torch.nan)
    Kernels(isa, threads).linear(out, x, weight, None, bf16=True)
    return out


def drawn(m: int, k: int, n: int) -> tuple[torch.Tensor, torch.Tensor, PackedLinear]:
    generator = torch.Generator().manual_seed(m + k + n)
    x, weight = torch.randn(m, k, generator=generator), torch.randn(n, k, generator=generator).bfloat16()
    matrix = PackedLinear(n, k, "bfloat16")
    matrix.load(weight)
    return x, weight, matrix


def in_tile_order(x: torch.Tensor, weight: torch.Tensor) -> Floats:
    """The arithmetic of `csrc/cpu/bf16_tiles.h`, a step of 32 depths at a time."""
    depth = -(-x.shape[1] // 32) * 32
    a, b = (torch.nn.functional.pad(side.bfloat16().float(), (0, depth - x.shape[1])).numpy() for side in (x, weight))
    acc = np.zeros((len(a), len(b)), np.float32)
    for step in range(0, depth, 32):
        chains = [np.zeros_like(acc), np.zeros_like(acc)]
        for d in range(step, step + 32):
            chains[d % 2] = _fma(a[:, None, d], b[None, :, d], chains[d % 2])
        acc = acc + (chains[0] + chains[1])
    return acc


def _fma(a: Floats, b: Floats, c: Floats) -> Floats:
    """Rounded once but for sums of numbers more than 2^40 apart: extended precision holds 64 bits."""
    return (a.astype(np.longdouble) * b.astype(np.longdouble) + c.astype(np.longdouble)).astype(np.float32)


@pytest.mark.parametrize(
    ("m", "k", "n"), [(1, 1, 1), (2, 32, 16), (3, 33, 40), (16, 300, 20), (17, 64, 17), (33, 95, 50), (97, 66, 33)]
)
def test_products_are_summed_in_the_order_of_tiles(m: int, k: int, n: int) -> None:
    x, weight, matrix = drawn(m, k, n)
    assert np.array_equal(multiply(x, matrix).numpy(), in_tile_order(x, weight))


def test_products_are_near_those_of_the_other_instruction_sets() -> None:
    x, _, matrix = drawn(40, 512, 70)
    torch.testing.assert_close(multiply(x, matrix), multiply(x, matrix, "avx2"), rtol=1e-4, atol=1e-4)


def test_a_row_is_the_same_alone_among_others_and_on_any_number_of_threads() -> None:
    x, _, matrix = drawn(98, 70, 90)
    together = multiply(x, matrix)
    assert torch.equal(multiply(x, matrix, threads=3), together)
    for size in (1, 5, 15, 16, 17, 31, 32, 33, 97):
        assert torch.equal(torch.cat([multiply(part, matrix) for part in x.split(size)]), together), size


def test_what_is_not_finite_shows_in_its_own_row_only() -> None:
    x, _, matrix = drawn(20, 70, 40)
    clean = multiply(x, matrix)
    x[3, 37] = torch.nan
    found = multiply(x, matrix)
    assert found[3].isnan().all()
    assert torch.equal(found[torch.arange(20) != 3], clean[torch.arange(20) != 3])
