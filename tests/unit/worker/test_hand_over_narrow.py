"""A hand-off of KV in 16 and 8 bits, scales in the blocks: the answer goes on with the bits of one worker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from role_bench import RoleBench
from test_hand_over import Pair, joined

from decode_worker.role import DecodeRole
from prefill_worker.role import PrefillRole


@pytest.fixture(params=["bfloat16", "int8", "fp8_e4m3"])
async def pair(tiny: Path, request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    benches = (RoleBench(tiny, kind, kv_cache_dtype=request.param) for kind in (PrefillRole, DecodeRole))
    async with joined(*benches) as both:
        yield both


async def test_the_answer_is_that_of_decode_alone(pair: Pair) -> None:
    assert pair.decode.layout.dtype == pair.prefill.layout.dtype != "float32"
    await pair.check_answer_is_that_of_decode_alone()
