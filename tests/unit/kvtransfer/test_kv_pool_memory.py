from __future__ import annotations

import pytest

from kvtransfer.pool_memory import KVPoolMemory
from wire.errors import ErrorCode, SpliceError
from wire.kv_layout import KVLayout

LAYOUT = KVLayout(num_layers=2, num_kv_heads=2, head_dim=16, block_tokens=32, dtype="float32")


def test_a_pool_larger_than_the_machine_is_refused_before_a_page_is_taken() -> None:
    with pytest.raises(SpliceError) as refused:
        KVPoolMemory.create(LAYOUT, (1 << 50) // LAYOUT.block_bytes, 1)
    assert refused.value.code is ErrorCode.BAD_SETTING
    assert refused.value.param == "num_blocks"
    assert "available" in refused.value.message


def test_a_bump_is_seen_and_blocks_do_not_overlap() -> None:
    pool = KVPoolMemory.create(LAYOUT, 3, 1)
    try:
        assert [pool.get(block) for block in range(3)] == [0, 0, 0]
        assert pool.bump(1) == pool.get(1) == 1
        before = pool.digest(0), pool.digest(2)
        pool.block(1)[:] = b"\xff" * LAYOUT.block_bytes
        assert (pool.digest(0), pool.digest(2)) == before
        assert pool.digest(1) not in before
        with pytest.raises(IndexError):
            pool.block(3)
    finally:
        pool.close()
