"""A step's arrays are those of its slices one by one, whatever the lengths, and whatever holds a block table."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.steps.batch import SequenceSlice, StepBatch
from engine.steps.step_arrays import StepArrays

SIZE = 4


@st.composite
def slices(draw: st.DrawFn, longest: int) -> SequenceSlice:
    start, length = draw(st.integers(0, 30)), draw(st.integers(1, longest))
    blocks = draw(st.lists(st.integers(0, 99), min_size=-(-(start + length) // SIZE), max_size=12))
    tokens = draw(st.lists(st.integers(-5, 99), min_size=length, max_size=length))
    table = array("i", blocks) if draw(st.booleans()) else blocks
    return SequenceSlice(tokens, start, table, draw(st.booleans()), draw(st.booleans()))


@given(st.sampled_from([1, 6]).flatmap(lambda longest: st.lists(slices(longest), max_size=5)))
def test_rows_tables_and_slots_are_those_of_each_slice(parts: list[SequenceSlice]) -> None:
    arrays = StepArrays.of(StepBatch(tuple(parts)), SIZE)
    row = 0
    for index, part in enumerate(parts):
        blocks = list(part.block_table)
        table = arrays.block_tables[index].tolist()
        assert table == blocks + [0] * (len(table) - len(blocks))
        assert (arrays.query_starts[index], arrays.starts[index]) == (row, part.start)
        assert arrays.prompt_ends[index] == part.num_prompt_tokens
        for position, token in enumerate(part.token_ids, part.start):
            slot = blocks[position // SIZE] * SIZE + position % SIZE
            assert (arrays.token_ids[row], arrays.positions[row], arrays.slots[row]) == (token, position, slot)
            row += 1
    assert arrays.query_starts[-1] == len(arrays.token_ids) == row
    ends = np.cumsum([len(part.token_ids) for part in parts], dtype=int).tolist()
    wanted = [at for end, part in zip(ends, parts, strict=True) for at in range(end - part.num_logits, end)]
    assert arrays.logit_rows.tolist() == wanted


@pytest.mark.parametrize("tokens", [[], [1, 2, 3]])
def test_a_slice_without_tokens_or_with_too_few_blocks_is_refused(tokens: list[int]) -> None:
    good = SequenceSlice([1], 0, [3], True)
    with pytest.raises(ValueError, match=f"slice at 7 with {len(tokens)} tokens and 2 blocks"):
        StepArrays.of(StepBatch((good, SequenceSlice(tokens, 7, [1, 2], True))), SIZE)
