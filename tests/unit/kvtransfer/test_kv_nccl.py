"""What nccl promises beyond the contract: nobody waits for ever for a peer.

Processes are real, devices and NCCL are not.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from counting_gate import Gate
from device_pair import NUM_BLOCKS, OTHER_GPU, Writer, content, device_pool
from fake_device import Breach, FakeDevice
from fake_nccl import FakeNccl
from kv_pair import LAYOUT, SOURCE_INCARNATION, pattern
from peer_processes import process, until

from kvtransfer import nccl_pair
from kvtransfer.device_pool import DevicePoolMemory
from kvtransfer.nccl_library import NcclError
from kvtransfer.transport import BlockRead, PeerPool, TransportError
from kvtransfer.transports import nccl
from kvtransfer.transports.nccl import NcclLink, NcclSource

EXPECTED = PeerPool(LAYOUT.layout_id, SOURCE_INCARNATION, NUM_BLOCKS, LAYOUT.block_bytes)
READ = BlockRead((1, 1), 3, 1, 5)


@contextlib.contextmanager
def served(**options: Any) -> Iterator[tuple[NcclSource, FakeNccl, Gate]]:
    """Blocks 0 to 7 written; at the end nothing is left and no order was wrong."""
    pool, gate = device_pool(SOURCE_INCARNATION), Gate()
    library = FakeNccl(pool.runtime, **options)
    writer = Writer(pool)
    pool.seal(list(range(8)), writer.write(list(range(8)))).digests()
    source = NcclSource(pool, gate, "127.0.0.1", library)
    try:
        yield source, library, gate
    finally:
        source.close()
        writer.close()
        pool.close()
    assert (gate.reading, library.communicators) == (0, {})
    pool.runtime.check()
    assert not pool.runtime.left


class Local:
    """A consumer's pool and its NCCL."""

    def __init__(self, **options: Any) -> None:
        self.pool: DevicePoolMemory = device_pool(7, seed=3, uuid=OTHER_GPU)
        self.library = FakeNccl(self.pool.runtime, **options)

    def link(self, address: bytes, expected: PeerPool = EXPECTED) -> NcclLink:
        return NcclLink(address, expected, self.pool, self.library)


@contextlib.contextmanager
def local(**options: Any) -> Iterator[Local]:
    here = Local(**options)
    try:
        yield here
    finally:
        until(lambda: not here.library.communicators)
        here.pool.close()
    here.pool.runtime.check()
    assert not here.pool.runtime.left


def reads(count: int) -> list[BlockRead]:
    return [BlockRead((1, 1), i % 8, 1, (5 * i + 3) % NUM_BLOCKS) for i in range(count)]


class Reading:
    """A read on a thread of its own."""

    def __init__(self, link: NcclLink, wanted: list[BlockRead]) -> None:
        self.error: TransportError | None = None
        self._thread = threading.Thread(target=self._run, args=(link, wanted))
        self._thread.start()

    def _run(self, link: NcclLink, wanted: list[BlockRead]) -> None:
        try:
            link.read_blocks(wanted)
        except TransportError as error:
            self.error = error

    def ended(self, limit_s: float = 10.0) -> TransportError | None:
        self._thread.join(limit_s)
        assert not self._thread.is_alive(), "the read waits for ever"
        return self.error


def _serve(pipe: Any) -> None:
    with served() as (source, library, _):
        library.frozen = pipe.recv() == "frozen"
        pipe.send(source.offer()[0])
        pipe.recv()


def _read_and_wait(pipe: Any) -> None:
    here = Local()
    link = here.link(pipe.recv())
    here.library.frozen = True
    reading = Reading(link, reads(8))
    until(lambda: here.library.communicators)
    pipe.send("reading")
    pipe.recv()
    reading.ended()


def test_batches_of_every_size_arrive_in_the_blocks_they_were_meant_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nccl, "PART_BYTES", 3 * LAYOUT.block_bytes)
    with served() as (source, _, _gate), local() as here:
        link = here.link(source.offer()[0])
        for count in (0, 1, 3, 4, 8):
            assert link.read_blocks(reads(count)) == [1] * count
            for read in reads(count):
                assert content(here.pool, read.dest_block) == pattern(read.block, LAYOUT.block_bytes)
        link.close()


def test_a_block_that_is_not_granted_is_neither_sent_nor_received() -> None:
    with served() as (source, _, _gate), local() as here:
        link = here.link(source.offer()[0])
        wanted = [replace(READ, generation=9, dest_block=7), READ, replace(READ, block=12, dest_block=8)]
        assert link.read_blocks(wanted) == [0, 1, 0]
        assert content(here.pool, 5) == pattern(3, LAYOUT.block_bytes)
        assert not any(content(here.pool, 7) + content(here.pool, 8))
        assert link.read_blocks(wanted[:1]) == [0]
        assert link.read_blocks([READ]) == [1]
        link.close()


def test_copy_threads_take_turns() -> None:
    with served() as (source, _, _gate), local() as here:
        link = here.link(source.offer()[0])
        several = [Reading(link, reads(4)) for _ in range(4)]
        assert [reading.ended() for reading in several] == [None] * 4
        link.close()


@pytest.mark.parametrize("tells", [True, False], ids=["nccl reports it", "nccl waits"])
def test_a_receive_from_a_killed_source_is_aborted_within_seconds(tells: bool) -> None:
    with local(tells=tells) as here, process(_serve) as (source, pipe):
        pipe.send("frozen")
        link = here.link(pipe.recv())
        reading = Reading(link, reads(8))
        until(lambda: here.pool.runtime.left.get("streams") and here.library.num_launched == 1)
        source.kill()
        assert reading.ended(5.0) is not None
        assert not here.library.communicators
        with pytest.raises(TransportError):
            link.read_blocks([READ])
        link.close()


@pytest.mark.parametrize("tells", [True, False], ids=["nccl reports it", "nccl waits"])
def test_a_send_to_a_killed_consumer_is_aborted_and_its_blocks_are_let_go(tells: bool) -> None:
    with served(tells=tells) as (source, library, gate), process(_read_and_wait) as (consumer, pipe):
        library.frozen = True
        pipe.send(source.offer()[0])
        assert pipe.poll(30)
        until(lambda: gate.reading == 8 and library.num_launched == 1)
        consumer.kill()
        until(lambda: gate.reading == 0 and not library.communicators and source.num_pairs == 0, 5.0)


def test_a_peer_that_lives_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nccl_pair, "READ_TIMEOUT_S", 0.3)
    with served() as (source, library, gate), local() as here:
        link = here.link(source.offer()[0])
        library.frozen = here.library.frozen = True
        error = Reading(link, reads(8)).ended()
        assert error is not None
        until(lambda: not library.communicators and gate.reading == 0)
        link.close()


def test_a_revoked_consumer_is_cut_off_in_the_midst_of_a_copy_and_others_are_not() -> None:
    with served() as (source, library, _), local() as here, local() as other:
        address, capability = source.offer()
        link, kept = here.link(address), other.link(source.offer()[0])
        here.library.frozen = True
        reading = Reading(link, reads(8))
        until(lambda: here.library.num_launched == 1)
        source.revoke(capability)
        assert reading.ended() is not None
        with pytest.raises(TransportError, match="refused the capability"):
            here.link(address)
        assert kept.read_blocks([READ]) == [1]
        assert library.communicators
        link.close()
        kept.close()


def test_closing_the_link_does_not_wait_and_ends_the_read_under_way() -> None:
    with served() as (source, _, _gate), local() as here:
        link = here.link(source.offer()[0])
        here.library.frozen = True
        reading = Reading(link, reads(8))
        until(lambda: here.library.num_launched == 1)
        link.close()
        assert reading.ended() is not None


def test_nothing_is_received_any_more_once_a_read_has_failed() -> None:
    with served() as (source, _, _gate), local() as here:
        link = here.link(source.offer()[0])
        here.library.frozen = True
        here.pool.runtime.held.clear()
        reading = Reading(link, [READ])
        until(lambda: here.library.num_launched == 1)
        link.close()
        until(lambda: not here.library.communicators)
        assert reading._thread.is_alive(), "the read ended with work on the device"
        here.pool.runtime.held.set()
        assert reading.ended() is not None


def test_two_pools_on_one_device_are_refused_before_anything_is_begun() -> None:
    with served() as (source, _, _gate):
        pool = device_pool(7)
        with pytest.raises(TransportError, match="no two ranks on one"):
            NcclLink(source.offer()[0], EXPECTED, pool, FakeNccl(pool.runtime))
        assert source.num_pairs == 0
        pool.close()


def test_another_pool_an_unreadable_address_and_one_pair_too_many_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nccl, "MAX_PAIRS", 1)
    with served() as (source, _, _gate), local() as here:
        with pytest.raises(TransportError, match="unreadable"):
            here.link(b"\xff")
        wrong = PeerPool(LAYOUT.layout_id, SOURCE_INCARNATION + 1, NUM_BLOCKS, LAYOUT.block_bytes)
        with pytest.raises(TransportError, match="expected"):
            here.link(source.offer()[0], wrong)
        until(lambda: source.num_pairs == 0)
        link = here.link(source.offer()[0])
        with pytest.raises(TransportError, match="no pair left"):
            here.link(source.offer()[0])
        link.close()


def test_a_source_that_never_joins_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nccl_pair, "JOIN_TIMEOUT_S", 0.2)
    with served() as (source, library, _), local() as here:
        monkeypatch.setattr(library, "_try_to_join", lambda known: None)
        with pytest.raises(TransportError):
            here.link(source.offer()[0])
        until(lambda: not library.communicators)


def test_what_nccl_refuses_is_an_error_of_the_transport() -> None:
    with served() as (source, library, _), local() as here:

        def refuse(*_: object) -> int:
            raise NcclError("ncclCommInitRankConfig: unhandled cuda error")

        here.library.join = refuse  # type: ignore[method-assign]
        with pytest.raises(TransportError, match="unhandled cuda error"):
            here.link(source.offer()[0])
        until(lambda: not library.communicators)


# --- the judge itself ---


def test_the_judge_sees_a_communicator_used_too_early_too_late_or_on_one_device() -> None:
    device = FakeDevice()
    first = FakeNccl(device)
    with pytest.raises(Breach, match="without a current device"):
        first.join(first.new_id(), 0)
    device.enter()
    name = first.new_id()
    with pytest.raises(Breach, match="two ranks on one device"):
        FakeNccl(device).join(name, 1)
    made = first.join(name, 0)
    with pytest.raises(Breach, match="used twice"):
        first.join(name, 0)
    with pytest.raises(Breach, match="before it had settled"):
        first.send(made, 1, [], 0, 0)
    first.abort(made)
    with pytest.raises(Breach, match="none any more"):
        first.abort(made)
