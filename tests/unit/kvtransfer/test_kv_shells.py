"""Promises of source and consumer that do not depend on the transport."""

from __future__ import annotations

import pytest
from kv_pair import FINAL, KEY, LAYOUT, fill, pair, until

from kvtransfer.faults import DROP_FINAL, FaultPlan
from kvtransfer.registry import LINKS, SOURCES
from kvtransfer.transport import TransportError
from wire.errors import ErrorCode


async def test_a_hold_nobody_fetches_is_released_when_its_lease_ends() -> None:
    async with pair(("shm",), source={"ttl_s": 0.2}) as (source, _, _consumer):
        fill(source.pool, [0])
        source.kv.announce(KEY, 0, [0], LAYOUT.block_tokens, FINAL)
        await until(lambda: source.released == [(KEY, "lease expired")])
        assert source.kv.stats.leases_expired == 1


async def test_a_waiting_consumer_keeps_its_lease_by_renewing() -> None:
    async with pair(("shm",), source={"ttl_s": 1.0}) as (source, address, consumer):
        consumer.kv.fetch(KEY, address, [0], 0, 2.5)
        await until(lambda: consumer.drained)
        ((_, error, _),) = consumer.failed
        assert error.code is ErrorCode.DEADLINE_EXCEEDED, "the lease ended before the consumer's own deadline"
        assert source.kv.stats.leases_expired == 0


async def test_a_lost_final_announcement_ends_at_the_deadline() -> None:
    faults = FaultPlan({DROP_FINAL: 1})
    async with pair(("shm",), source={"faults": faults}) as (source, address, consumer):
        fill(source.pool, [0])
        source.kv.announce(KEY, 0, [0], LAYOUT.block_tokens, FINAL)
        consumer.kv.fetch(KEY, address, [0], 0, 0.5)
        await until(lambda: consumer.drained)
        assert faults.hits[DROP_FINAL] == 1
        assert "final" in consumer.failed[0][1].message


async def test_an_offer_the_consumer_does_not_know_is_skipped_and_counted() -> None:
    names = ("warp", "tcp")
    source = {"factories": {**SOURCES, "warp": SOURCES["tcp"]}}
    async with pair(names, source=source, consumer={"factories": {**LINKS, "warp": LINKS["tcp"]}}) as parts:
        served, address, consumer = parts
        consumer.kv._factories = LINKS
        fill(served.pool, [0])
        served.kv.announce(KEY, 0, [0], LAYOUT.block_tokens, FINAL)
        consumer.kv.fetch(KEY, address, [0], 0, 5.0)
        await until(lambda: consumer.ready)
        assert (consumer.ready[0][2].transport, consumer.ready[0][2].transport_fallbacks) == ("tcp", 1)
        assert consumer.kv.stats.transport_fallbacks == 1


class BrokenOnce:
    """A link factory whose first link fails its first read, as a connection to a frozen source does."""

    def __init__(self) -> None:
        self.opened = 0

    def __call__(self, address, expected):
        self.opened += 1
        link = LINKS["tcp"](address, expected)
        if self.opened == 1:
            link.read = self._fail
        return link

    @staticmethod
    def _fail(*_):
        raise TransportError("timed out")


@pytest.mark.parametrize("noticed", ["at once", "after the next fetch"])
async def test_a_source_whose_transports_all_failed_once_is_not_given_up_for_good(noticed: str) -> None:
    links = BrokenOnce()
    async with pair(("tcp",), consumer={"factories": {"tcp": links}}) as (source, address, consumer):
        fill(source.pool, [0, 1])
        source.kv.announce(KEY, 0, [0], LAYOUT.block_tokens, FINAL)
        if noticed == "after the next fetch":
            on_loop = consumer.kv._on_loop
            consumer.kv._on_loop = lambda call, *args: call == consumer.kv._part or on_loop(call, *args)
        consumer.kv.fetch(KEY, address, [0], 0, 5.0)
        await until(lambda: consumer.drained)
        assert consumer.failed[0][1].code is ErrorCode.KV_TRANSFER_FAILED
        again = (KEY[0], 2)
        source.kv.announce(again, 0, [1], LAYOUT.block_tokens, FINAL)
        consumer.kv.fetch(again, address, [1], 0, 5.0)
        await until(lambda: consumer.ready or len(consumer.failed) > 1)
        assert consumer.ready, consumer.failed[-1]
        assert links.opened == 2
