"""What the ucx transport promises beyond the contract; on the loopback its gets are emulated over TCP."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kv_pair import LAYOUT, SOURCE_INCARNATION, fill, pattern
from peer_processes import freeze, process, until

from kvtransfer import registry
from kvtransfer.pool_memory import KVPoolMemory
from kvtransfer.transport import PeerPool, TransportError
from kvtransfer.transports.ucx import UcxLink, UcxSource
from wire.errors import ErrorCode, SpliceError

NUM_BLOCKS = 8
EXPECTED = PeerPool(LAYOUT.layout_id, SOURCE_INCARNATION, NUM_BLOCKS, LAYOUT.block_bytes)
KEY = (1, 1)
_LISTEN = "0A"


class Gate:
    """One-sided reads ask nobody."""

    def begin_read(self, key: tuple[int, int], block: int, generation: int) -> bool:
        raise AssertionError

    def end_read(self, key: tuple[int, int]) -> None:
        raise AssertionError


def filled_pool() -> KVPoolMemory:
    pool = KVPoolMemory.create(LAYOUT, NUM_BLOCKS, SOURCE_INCARNATION)
    fill(pool, list(range(NUM_BLOCKS)))
    return pool


@contextlib.contextmanager
def served() -> Iterator[tuple[KVPoolMemory, UcxSource]]:
    pool = filled_pool()
    source = UcxSource(pool, Gate(), "127.0.0.1")
    try:
        yield pool, source
    finally:
        source.close()
        pool.close()


def _serve(pipe: Any) -> None:
    with served() as (_, source):
        pipe.send(source.offer()[0])
        pipe.recv()


def _read_once_and_wait(pipe: Any) -> None:
    link = UcxLink(pipe.recv(), EXPECTED)
    link.read(KEY, 0, 1, memoryview(bytearray(LAYOUT.block_bytes)))
    pipe.send("read")
    pipe.recv()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Reading:
    """One read on a thread, and how it ended."""

    def __init__(self, link: UcxLink, dest: memoryview) -> None:
        self.error: TransportError | None = None
        self._thread = threading.Thread(target=self._run, args=(link, dest))
        self._thread.start()

    def _run(self, link: UcxLink, dest: memoryview) -> None:
        try:
            link.read(KEY, 3, 1, dest)
        except TransportError as error:
            self.error = error

    def is_under_way(self) -> bool:
        self._thread.join(0.2)
        return self._thread.is_alive()

    def ended(self, limit_s: float) -> bool:
        self._thread.join(limit_s)
        return not self._thread.is_alive()


def test_a_block_arrives_with_the_generation_behind_it() -> None:
    with process(_serve) as (_, pipe):
        link = UcxLink(pipe.recv(), EXPECTED)
        dest = bytearray(LAYOUT.block_bytes)
        for block in range(NUM_BLOCKS):
            assert link.read(KEY, block, 1, memoryview(dest)) == 1
            assert dest == pattern(block, LAYOUT.block_bytes)
        link.close()


def test_a_block_bumped_at_the_source_comes_with_another_generation() -> None:
    with served() as (pool, source):
        link = UcxLink(source.offer()[0], EXPECTED)
        pool.bump(5)
        assert link.read(KEY, 5, 1, memoryview(bytearray(LAYOUT.block_bytes))) == 2
        link.close()


def test_killing_the_source_ends_a_get_in_flight_within_seconds() -> None:
    with process(_serve) as (source, pipe):
        link = UcxLink(pipe.recv(), EXPECTED)
        freeze(source.pid)
        reading = Reading(link, memoryview(bytearray(LAYOUT.block_bytes)))
        assert reading.is_under_way()
        source.kill()
        assert reading.ended(5.0)
        assert reading.error is not None
        link.close()


def test_a_killed_source_is_noticed_by_the_next_read() -> None:
    with process(_serve) as (source, pipe):
        link = UcxLink(pipe.recv(), EXPECTED)
        dest = memoryview(bytearray(LAYOUT.block_bytes))
        assert link.read(KEY, 0, 1, dest) == 1
        source.kill()
        source.join()
        with pytest.raises(TransportError):
            link.read(KEY, 1, 1, dest)
        link.close()


def test_after_a_close_ended_a_get_nothing_writes_to_its_destination() -> None:
    with process(_serve) as (source, pipe):
        link = UcxLink(pipe.recv(), EXPECTED)
        freeze(source.pid)
        dest = bytearray(LAYOUT.block_bytes)
        reading = Reading(link, memoryview(dest))
        assert reading.is_under_way()
        link.close()
        assert reading.ended(5.0)
        assert reading.error is not None
        left = bytes(dest)
        os.kill(source.pid, signal.SIGCONT)  # it now answers what it was asked
        time.sleep(0.2)
        assert bytes(dest) == left
        with pytest.raises(TransportError):
            link.read(KEY, 0, 1, memoryview(dest))


def test_only_an_offered_capability_connects_and_a_revoked_one_is_cut_off() -> None:
    with served() as (_, source):
        address, capability = source.offer()
        with pytest.raises(TransportError):
            UcxLink(address.replace(capability, bytes(len(capability))), EXPECTED)
        link = UcxLink(address, EXPECTED)
        other = UcxLink(source.offer()[0], EXPECTED)
        dest = memoryview(bytearray(LAYOUT.block_bytes))
        assert link.read(KEY, 0, 1, dest) == 1
        source.revoke(capability)
        until(lambda: source.num_consumers == 1)
        with pytest.raises(TransportError):
            link.read(KEY, 0, 1, dest)
        with pytest.raises(TransportError):
            UcxLink(address, EXPECTED)
        assert other.read(KEY, 0, 1, dest) == 1
        link.close()
        other.close()


def test_another_pool_than_expected_is_refused() -> None:
    with served() as (_, source):
        restarted = PeerPool(LAYOUT.layout_id, SOURCE_INCARNATION + 1, NUM_BLOCKS, LAYOUT.block_bytes)
        with pytest.raises(TransportError, match="expected"):
            UcxLink(source.offer()[0], restarted)


def test_everything_listens_on_the_loopback_only() -> None:
    def listening() -> set[str]:
        names = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if is_open(fd)}
        rows = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
        return {row[1] for row in rows if row[3] == _LISTEN and f"socket:[{row[9]}]" in names}

    def is_open(fd: str) -> bool:
        return os.path.lexists(f"/proc/self/fd/{fd}")

    before = listening()
    with served() as (_, source):
        link = UcxLink(source.offer()[0], EXPECTED)
        ours = listening() - before
        assert ours
        assert {where.partition(":")[0] for where in ours} == {"0100007F"}
        link.close()


def test_consumers_that_are_killed_or_half_connected_leave_no_descriptor() -> None:
    with served() as (_, source):

        def once() -> None:
            strangers = [socket.create_connection(("127.0.0.1", source.port)) for _ in range(4)]
            strangers[0].sendall(b"GET / HTTP/1.1\r\n\r\n")
            for stranger in strangers:
                stranger.close()
            with process(_read_once_and_wait) as (consumer, pipe):
                pipe.send(source.offer()[0])
                assert pipe.poll(30)
                assert source.num_consumers == 1
                consumer.kill()
                until(lambda: source.num_consumers == 0)

        once()  # the first one opens what stays
        before = open_descriptors()
        once()
        once()
        until(lambda: open_descriptors() <= before)


def test_a_link_whose_source_died_leaves_no_descriptor() -> None:
    def once() -> None:
        with process(_serve) as (source, pipe):
            link = UcxLink(pipe.recv(), EXPECTED)
            source.kill()
            source.join()
            with pytest.raises(TransportError):
                link.read(KEY, 0, 1, memoryview(bytearray(LAYOUT.block_bytes)))
            link.close()

    once()
    before = open_descriptors()
    once()
    once()
    until(lambda: open_descriptors() <= before)


def test_an_idle_source_and_an_idle_link_sleep() -> None:
    with served() as (_, source):
        link = UcxLink(source.offer()[0], EXPECTED)
        link.read(KEY, 0, 1, memoryview(bytearray(LAYOUT.block_bytes)))
        used_s, began_s = time.process_time(), time.monotonic()
        time.sleep(0.3)
        assert time.process_time() - used_s < (time.monotonic() - began_s) / 4
        link.close()


def test_a_transport_without_its_library_is_passed_over_and_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MISSING", {"ucx": "built without UCX"})
    assert registry.checked(("shm", "ucx", "tcp"), ["shm", "tcp"]) == ("shm", "tcp")
    with pytest.raises(SpliceError, match="built without UCX") as none_left:
        registry.checked(("ucx",), ["shm", "tcp"])
    assert none_left.value.code is ErrorCode.BAD_SETTING
    with pytest.raises(SpliceError, match="pigeon"):
        registry.checked(("shm", "pigeon"), ["shm", "tcp"])
