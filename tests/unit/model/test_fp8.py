"""Codes and scales of stored tensors, whole and in parts, against torch's own e4m3."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from fp8_files import BLOCK, quantised, spread

from engine.formats.fp8 import BLOCKS, ROWS, VALUES, Fp8Tensor, as_bfloat16, laid_out, scale_shapes
from engine.formats.stored import Member, RowPick, Stored, row_range
from engine.models.deepseek import halves_of_turned_rows, up_projection
from engine.rope_spec import RopeSpec
from engine.spec import LatentAttentionSpec
from engine.weights import widened


def test_every_code_is_what_torch_says_it_is() -> None:
    wanted = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(VALUES, wanted)


def _stacked(count: int, rows: int, columns: int, scaling: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, scales and bfloat16 values of so many matrices."""
    generator = torch.Generator().manual_seed(rows + columns)
    found = []
    for _ in range(count):
        codes, scales = quantised(torch.randn(rows, columns, generator=generator), scaling)  # type: ignore[arg-type]
        wide = spread(scales, rows, columns) if scaling == "blocks" else scales
        found.append((codes, scales, (codes.float() * wide).bfloat16()))
    codes, scales, values = (torch.stack(part) for part in zip(*found, strict=True))
    return codes, scales, values


def _laid_out(stored: Stored, codes: torch.Tensor, scales: torch.Tensor, *, has_blocks: bool) -> Fp8Tensor:
    own = codes if stored.member is None else codes[stored.member.index]
    return laid_out(stored, own.view(torch.uint8).numpy(), scales.numpy(), has_blocks=has_blocks)


def _values(tensor: Fp8Tensor) -> torch.Tensor:
    return torch.from_numpy(widened(as_bfloat16(tensor))).bfloat16()


ROWS_OF, COLUMNS = 300, 200
_ORDERS = {
    "all": None,
    "a block": np.arange(128, 256),
    "the rest from a block on": np.arange(128, 300),
    "within blocks": np.concatenate([np.arange(127, -1, -1), np.arange(128, 256, 2), np.arange(129, 256, 2)]),
    "across blocks": np.arange(64, 264),
    "every other": np.arange(0, 300, 2),
}
_BLOCKS_APART = {"across blocks", "every other"}


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("is_member", [False, True])
@pytest.mark.parametrize("scaling", ["tensor", "rows", "blocks"])
@pytest.mark.parametrize("order", _ORDERS)
def test_parts_of_a_tensor_have_the_values_of_the_whole(
    order: str, scaling: str, *, is_member: bool, is_transposed: bool
) -> None:
    codes, scales, values = _stacked(3, ROWS_OF, COLUMNS, scaling)
    rows = _ORDERS[order]
    pick = None if rows is None else RowPick(ROWS_OF, rows)
    stored = Stored("w", pick, Member(2, 3) if is_member else None, is_transposed=is_transposed)
    wanted = values[2] if rows is None else values[2][torch.from_numpy(rows)]
    if not is_member:
        codes, scales = codes[2], scales[2]
    if is_transposed:
        codes = codes.mT.contiguous()
        scales = scales if scaling == "tensor" else scales.mT.contiguous()
    has_blocks = scaling == "blocks"
    assert tuple(scales.shape) in scale_shapes(stored, tuple(wanted.shape), has_blocks=has_blocks)
    found = _laid_out(stored, codes, scales, has_blocks=has_blocks)
    assert torch.equal(_values(found), wanted)
    assert found.kind == (ROWS if not has_blocks else None if order in _BLOCKS_APART else BLOCKS)


def test_deepseek_v3s_own_shapes_keep_their_blocks() -> None:
    """Rows that turn are paired as neighbours in its files, and are put into halves within one block each."""
    attention = LatentAttentionSpec(
        3, 1536, 512, 128, 64, 128, RopeSpec(10000.0), scale=0.1, files_pair_neighbours=True
    )
    for name, rows in (("q_b_proj", 3 * 192), ("kv_a_proj_with_mqa", 576)):
        codes, scales, values = _stacked(1, rows, 256, "blocks")
        pick = halves_of_turned_rows(attention, f"model.layers.0.self_attn.{name}.weight")
        assert pick is not None
        found = _laid_out(Stored(name, pick), codes[0], scales[0], has_blocks=True)
        assert found.kind == BLOCKS
        assert torch.equal(_values(found), values[0][torch.from_numpy(pick.rows)])
    codes, scales, values = _stacked(1, 3 * 256, 512, "blocks")
    for head, part in itertools.product(range(3), "kv"):
        stored = up_projection(attention, "kv_b_proj", part, head)
        found = _laid_out(stored, codes[0], scales[0], has_blocks=True)
        first = 256 * head + 128 * (part == "v")
        assert (found.kind, found.scales.shape) == (BLOCKS, (1, 4))
        assert torch.equal(_values(found), values[0][first : first + 128])


def test_a_part_that_is_whole_blocks_is_a_view_of_the_file() -> None:
    codes, scales, _ = _stacked(1, ROWS_OF, COLUMNS, "blocks")
    found = _laid_out(row_range("w", 128, 128, ROWS_OF), codes[0], scales[0], has_blocks=True)
    assert np.shares_memory(found.codes, codes[0].view(torch.uint8).numpy())
    assert found.scales.shape == (1, -(-COLUMNS // BLOCK))


def test_products_are_rounded_as_torch_rounds_them() -> None:
    codes = np.tile(np.array([code for code in range(256) if code & 0x7F != 0x7F], np.uint8), (4000, 1))
    generator = np.random.default_rng(0)
    scales = np.exp2(generator.uniform(-140, 100, 4000)).astype(np.float32)
    wanted = (torch.from_numpy(VALUES[codes]) * torch.from_numpy(scales)[:, None]).bfloat16()
    assert torch.equal(_values(Fp8Tensor(codes, scales, ROWS)).view(torch.int16), wanted.view(torch.int16))
