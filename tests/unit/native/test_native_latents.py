"""Attention over cached latents: right against float64, and the same bits for any cut, threads and instruction set."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from engine._native import Kernels, supported_isas

LAYERS = 2
SHAPES = {"whole vectors": (16, 32, 16), "odd": (5, 20, 6), "many heads": (40, 48, 8)}
"""Heads, rank and rope."""
SEQUENCES = [(0, 70), (33, 1), (0, 1), (95, 5), (64, 40)]
"""Start and number of the queries."""
Array = npt.NDArray[np.float32]


class Latents:
    """Sequences of random rows in scattered blocks; places nobody owns are NaN."""

    def __init__(self, heads: int, rank: int, rope: int, block_tokens: int, *, is_bfloat16: bool) -> None:
        rng = np.random.default_rng(5)
        self.heads, self.rank, self.width, self.block_tokens = heads, rank, rank + rope, block_tokens
        ends = [start + count for start, count in SEQUENCES]
        blocks = [-(-end // block_tokens) for end in ends]
        order = rng.permutation(sum(blocks) + 2).astype(np.int32)
        self.tables = np.zeros((len(ends), max(blocks)), np.int32)
        cache = np.full((len(order), LAYERS, 1, 1, block_tokens, self.width), np.nan, np.float32)
        self.rows, taken = [], 0
        for sequence, (end, count) in enumerate(zip(ends, blocks, strict=True)):
            self.tables[sequence, :count] = order[taken : taken + count]
            taken += count
            values = rng.standard_normal((end, self.width), dtype=np.float32)
            if is_bfloat16:
                values = ((values.view(np.uint32) >> 16) << 16).view(np.float32)
            self.rows.append(values)
            for position in range(end):
                cache[self.tables[sequence, position // block_tokens], 1, 0, 0, position % block_tokens] = values[
                    position
                ]
        self.cache = (cache.view(np.uint32) >> 16).astype(np.uint16) if is_bfloat16 else cache
        self.queries = [rng.standard_normal((end, heads, self.width), dtype=np.float32) for end in ends]

    def attend(self, kernels: Kernels, parts: list[tuple[int, int, int]]) -> Array:
        """`parts` are (sequence, start, count), in one call."""
        q = np.concatenate([self.queries[s][start : start + count] for s, start, count in parts])
        out = np.empty((len(q), self.heads, self.rank), np.float32)
        bounds = np.cumsum([0, *[count for _, _, count in parts]]).astype(np.int32)
        tables = self.tables[[s for s, _, _ in parts]]
        starts = np.array([start for _, start, _ in parts], np.int32)
        kernels.latent_attention(out, q, self.cache, 1, tables, bounds, starts, 0.3)
        return out

    def expected(self, sequence: int, position: int) -> npt.NDArray[np.float64]:
        rows, q = self.rows[sequence][: position + 1].astype(np.float64), self.queries[sequence][position]
        scores = q.astype(np.float64) @ rows.T * 0.3
        masses = np.exp(scores - scores.max(axis=1, keepdims=True))
        return masses / masses.sum(axis=1, keepdims=True) @ rows[:, : self.rank]


PARTS = [(s, start, count) for s, (start, count) in enumerate(SEQUENCES)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("block_tokens", "is_bfloat16"), [(32, False), (32, True), (16, False), (12, True)])
def test_attention_equals_float64(shape: str, block_tokens: int, is_bfloat16: bool) -> None:
    latents = Latents(*SHAPES[shape], block_tokens, is_bfloat16=is_bfloat16)
    found = latents.attend(Kernels("auto", 1), PARTS)
    row = 0
    for sequence, start, count in PARTS:
        for position in range(start, start + count):
            np.testing.assert_allclose(found[row], latents.expected(sequence, position), rtol=0, atol=2e-5)
            row += 1


@pytest.mark.parametrize("shape", SHAPES)
def test_no_cut_company_thread_or_instruction_set_changes_a_bit(shape: str) -> None:
    latents = Latents(*SHAPES[shape], 32, is_bfloat16=False)
    whole = latents.attend(Kernels("auto", 1), PARTS)
    for kernels in (*(Kernels(isa, 1) for isa in supported_isas()), Kernels("auto", 3)):
        assert np.array_equal(latents.attend(kernels, PARTS), whole)
    first = 0
    for sequence, start, count in PARTS:
        rows = [latents.attend(Kernels("auto", 1), [(sequence, start + i, 1)]) for i in range(count)]
        assert np.array_equal(np.concatenate(rows), whole[first : first + count])
        first += count


def test_a_cache_of_another_shape_is_refused() -> None:
    latents = Latents(4, 16, 8, 32, is_bfloat16=False)
    latents.cache = np.concatenate([latents.cache, latents.cache], axis=2)
    with pytest.raises(ValueError, match="latents"):
        latents.attend(Kernels("auto", 1), PARTS)
