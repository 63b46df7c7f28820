"""A layout says what a block is in memory, and two layouts are one exactly when every field is."""

from __future__ import annotations

import msgspec
import pytest

from kvtransfer.control import layout_difference
from kvtransfer.pool_memory import KVPoolMemory
from wire.convert import layout_to_proto
from wire.kv_layout import KVLayout

LAYOUT = KVLayout(num_layers=3, num_kv_heads=2, head_dim=8, block_tokens=32, dtype="bfloat16")
LATENT = KVLayout(num_layers=3, num_kv_heads=1, head_dim=40, block_tokens=32, dtype="float32", planes=1)
CHANGES: list[dict[str, object]] = [
    {"num_layers": 4}, {"num_kv_heads": 1}, {"head_dim": 4}, {"block_tokens": 16}, {"dtype": "float16"},
    {"order": "token"}, {"planes": 1},
]  # fmt: skip


def test_a_block_of_keys_and_values_and_one_of_latents() -> None:
    assert (LAYOUT.block_shape, LAYOUT.layer_bytes) == ((3, 2, 2, 32, 8), 2048)
    assert (LATENT.block_shape, LATENT.block_bytes) == ((3, 1, 1, 32, 40), 3 * 32 * 40 * 4)
    pool = KVPoolMemory.create(LATENT, 2, 1)
    try:
        assert len(pool.block(1)) == LATENT.block_bytes
    finally:
        pool.close()


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_another_value_in_any_field_is_another_layout_and_is_named(change: dict[str, object]) -> None:
    other = msgspec.structs.replace(LAYOUT, **change)
    assert other.layout_id != LAYOUT.layout_id
    assert f"layout.{next(iter(change))} is" in str(layout_difference(LAYOUT, layout_to_proto(other)))
    assert layout_difference(other, layout_to_proto(other)) is None
    assert msgspec.json.decode(msgspec.json.encode(other), type=KVLayout).layout_id == other.layout_id


def test_every_field_is_among_those_tried() -> None:
    assert {next(iter(change)) for change in CHANGES} == set(KVLayout.__struct_fields__)
