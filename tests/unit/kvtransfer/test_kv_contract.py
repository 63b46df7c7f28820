"""What every transport promises; the same tests over each."""

from __future__ import annotations

import pytest
from kv_pair import FINAL, KEY, LAYOUT, Consumer, pattern, source_process, until

TRANSPORTS = ("shm", "tcp", "ucx")


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_blocks_arrive_unchanged_from_another_process(transport: str) -> None:
    with source_process((transport,), num_blocks=12) as (_, address, control):
        consumer = Consumer((transport,))
        await consumer.kv.start()
        dest = list(range(15, 3, -1))
        consumer.kv.fetch(KEY, address, dest, 0, 20.0)
        await until(lambda: consumer.ready or consumer.failed, 20.0)
        assert not consumer.failed
        key, final, stats = consumer.ready[0]
        assert (key, final) == (KEY, FINAL)
        for index, block in enumerate(dest):
            assert bytes(consumer.pool.block(block)) == pattern(index, LAYOUT.block_bytes)
        assert (stats.transport, stats.kv_blocks, stats.transport_fallbacks) == (transport, 12, 0)
        assert stats.kv_bytes == 12 * LAYOUT.block_bytes
        assert stats.copy_s > 0
        await consumer.close()
        control.send("stop")
        assert control.poll(10)
        assert control.recv() == [(KEY, "fetched")]
