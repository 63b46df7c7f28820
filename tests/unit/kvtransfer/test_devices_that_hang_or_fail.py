"""What is waited for on a device, who is held up by that, and what is left of a device that takes nothing back."""

from __future__ import annotations

import itertools
import socket
import threading
from types import SimpleNamespace

import pytest
from device_pair import LAYOUT
from fake_device import FakeDevice, FakeKernels

from kvtransfer import device_lane
from kvtransfer.device_lane import DeviceLane
from kvtransfer.device_pool import DevicePoolMemory
from kvtransfer.device_runtime import DeviceError
from kvtransfer.peer_mappings import PeerMapping, PeerMappings
from kvtransfer.transport import TransportError


class Clock:
    """Time passes by sleeping alone."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        self.now_s += 1e-6
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.mark.parametrize(("busy_s", "most_looks"), [(0.5e-3, 80), (20.0, 3000)])
def test_what_is_done_soon_is_seen_soon_and_what_hangs_is_hardly_looked_at(monkeypatch, busy_s, most_looks):
    device, clock = FakeDevice(), Clock()
    lane = DeviceLane(device, FakeKernels(device), 4, LAYOUT.block_bytes)
    monkeypatch.setattr(device_lane, "time", clock)
    looks = itertools.count()

    def is_done(event: int) -> bool:
        next(looks)
        return clock.now_s >= busy_s

    monkeypatch.setattr(device, "is_done", is_done)
    lane.launched()
    lane.finish()
    assert clock.now_s <= busy_s * 1.1
    assert next(looks) <= most_looks


def test_a_pool_on_a_device_that_takes_nothing_back_is_closed_and_hides_no_error(monkeypatch):
    device = FakeDevice()
    pool = DevicePoolMemory(LAYOUT, 2, 1, device, FakeKernels(device))

    def refuse(*_: object) -> None:
        raise DeviceError("an illegal memory access was encountered")

    for name in ("free", "free_pinned", "end_event", "end_stream"):
        monkeypatch.setattr(device, name, refuse)
    pool.close()
    assert pool.table_fd == -1


class SlowDriver:
    """Opens the handle `slow` when it may."""

    def __init__(self) -> None:
        self.asked, self.may, self.closed = threading.Event(), threading.Event(), threading.Event()
        self.mapped: set[int] = set()

    def open_export(self, handle: bytes) -> int:
        if handle == b"slow":
            self.asked.set()
            assert self.may.wait(30)
        self.mapped.add(len(handle))
        return len(handle)

    def close_export(self, address: int) -> None:
        self.mapped.remove(address)
        self.closed.set()


@pytest.fixture
def opening():
    """A mapping that is there, and one that is being opened on another thread."""
    driver = SlowDriver()
    mappings = PeerMappings(driver)  # type: ignore[arg-type]
    pairs = [socket.socketpair() for _ in range(2)]
    there = mappings.open(b"quick", pairs[0][0])
    found: list[PeerMapping] = []
    thread = threading.Thread(target=lambda: found.append(mappings.open(b"slow", pairs[1][0])))
    thread.start()
    assert driver.asked.wait(30)
    yield SimpleNamespace(driver=driver, mappings=mappings, there=there, found=found, thread=thread)
    driver.may.set()
    thread.join(30)
    mappings.close()
    for _, owner in pairs:
        owner.close()


def test_while_a_driver_opens_one_mapping_others_are_used(opening):
    with opening.there.used() as address:
        assert address == len(b"quick")
    assert len(opening.mappings) == 1


def test_closing_waits_for_a_mapping_that_is_being_opened_and_unmaps_it(opening):
    closing = threading.Thread(target=opening.mappings.close)
    closing.start()
    assert opening.driver.closed.wait(30)
    closing.join(0.05)  # all that was mapped is not any more, and yet there is one to come
    assert closing.is_alive()
    opening.driver.may.set()
    opening.thread.join(30)
    closing.join(30)
    assert not closing.is_alive()
    assert not opening.driver.mapped
    with pytest.raises(TransportError, match="closed"):
        opening.found[0].begin()
