"""A device for tests: memory that no host code can reach, work that is done late, and a judge of the order of calls.

Allocations are memfds under addresses that mean nothing to the host. What is given to a stream waits there; it is done,
or not yet, as chance has it, when somebody asks for an event, and until then its destination holds poison. A breach of
a rule of `DeviceRuntime` raises `Breach` where it happens and is kept in `breaches`, because shells catch exceptions.

An instance is what a process is to a driver: it cannot open its own exports, and its mappings end with the process.
Who maps an allocation is known across processes by a shared lock on its memfd, which dies with its holder.
"""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import mmap
import os
import random
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from kvtransfer.device_runtime import DeviceError, Pinned
from kvtransfer.kv_checksum import BlockRows, checksum

POISON = 0xDB
_HANDLE = struct.Struct("<QQQ40x")
"""process, descriptor, instance"""
_SPACE = 1 << 40
_instances = itertools.count(1)


class Breach(AssertionError):
    """The order of calls was wrong."""


@dataclass
class Span:
    """Memory that the device reaches, at addresses of its own."""

    address: int
    memory: mmap.mmap
    kind: str
    fd: int = -1

    @property
    def end(self) -> int:
        return self.address + len(self.memory)


@dataclass
class Work:
    """What a stream will do: reads and writes are (address, bytes)."""

    number: int
    run: Callable[[], None]
    reads: list[tuple[int, int]]
    writes: list[tuple[int, int]]
    is_ready: Callable[[], bool]
    """What it waits for, beside the work before it."""


@dataclass
class Stream:
    queue: list[Work] = field(default_factory=list)
    known: dict[int, int] = field(default_factory=dict)
    """Of other streams: the number of the last work that comes before what is given here from now on."""
    last: int = 0


class FakeDevice:
    """`device_runtime.DeviceRuntime`. `lazy` is the chance that an event asked for is not done yet."""

    def __init__(
        self,
        uuid: str = "0" * 32,
        *,
        seed: int = 1,
        lazy: float = 0.5,
        reaches: bool = True,
        nbytes: int = 1 << 26,
        host_addresses: bool = False,
    ) -> None:
        """With `host_addresses` its memory lies where it says, for libraries that are to move it themselves."""
        self._host_addresses = host_addresses
        self.uuid = uuid
        self.breaches: list[str] = []
        self.opened = 0
        self.held = threading.Event()
        """While cleared, no work is done: a device that is busy with something else."""
        self.held.set()
        self.entered: set[int] = set()
        """Threads for which the device is the current one."""
        self.is_asked = False
        """Somebody has waited for work that was held."""
        self.fail_next: str | None = None
        """The next call of this name fails as a driver's does."""
        self._instance = os.getpid() << 20 | next(_instances)
        self._next = _SPACE * (1 + self._instance % 1009)
        self._random = random.Random(seed)
        self._lazy = lazy
        self._reaches = reaches
        self._nbytes = nbytes
        self._lock = threading.RLock()
        self._spans: dict[int, Span] = {}
        self._exports: dict[bytes, int] = {}
        self._streams: dict[int, Stream] = {}
        self._events: dict[int, tuple[int, int] | None] = {}
        self._numbers = itertools.count(1)

    context = 0

    def enter(self) -> None:
        self.entered.add(threading.get_ident())

    # --- memory ---

    def free_bytes(self) -> int:
        with self._lock:
            return self._nbytes - sum(len(span.memory) for span in self._spans.values() if span.kind == "own")

    def allocate(self, nbytes: int) -> int:
        with self._lock:
            self._driver("allocate")
            if nbytes > self.free_bytes():
                raise DeviceError(f"allocate: out of memory: {nbytes} bytes")
            return self._map("own", nbytes).address

    def free(self, address: int) -> None:
        with self._lock:
            span = self._taken(address, "own")
            with open(f"/proc/self/fd/{span.fd}", "rb") as again:
                try:
                    fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    self.breach("freed while a peer maps it")
            os.close(span.fd)

    def export(self, address: int) -> tuple[bytes, int]:
        with self._lock:
            self._driver("export")
            span = self._span(address, 1, "own")
            return _HANDLE.pack(os.getpid(), span.fd, self._instance), address - span.address

    def open_export(self, handle: bytes) -> int:
        with self._lock:
            self._driver("open_export")
            process, descriptor, instance = _HANDLE.unpack(handle)
            if instance == self._instance:
                self.breach("a process opened its own export")
            if handle in self._exports:
                self.breach("a handle was opened twice")
            if not self._reaches:
                raise DeviceError("open_export: peer access is not supported")
            try:
                fd = os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                raise DeviceError(f"open_export: invalid handle ({error.strerror})") from error
            fcntl.flock(fd, fcntl.LOCK_SH)
            address = self._map("peer", os.fstat(fd).st_size, fd).address
            self._exports[handle] = address
            self.opened += 1
            return address

    def close_export(self, address: int) -> None:
        with self._lock:
            span = self._taken(address, "peer")
            self._exports = {handle: at for handle, at in self._exports.items() if at != address}
            os.close(span.fd)

    def can_reach(self, uuid: str) -> bool:
        return True

    @property
    def num_mapped(self) -> int:
        with self._lock:
            return len(self._exports)

    def allocate_pinned(self, nbytes: int) -> Pinned:
        with self._lock:
            span = self._map("pinned", nbytes)
            return Pinned(span.address, memoryview(span.memory)[:nbytes])

    def free_pinned(self, memory: Pinned) -> None:
        with self._lock:
            self._taken(memory.address, "pinned")

    def pin(self, mapping: mmap.mmap) -> Pinned:
        with self._lock:
            self._driver("pin")
            span = Span(self._next, mapping, "pinned")
            self._next += -(-len(mapping) // 4096) * 4096 + 4096
            self._spans[span.address] = span
            return Pinned(span.address, memoryview(mapping))

    def unpin(self, memory: Pinned) -> None:
        with self._lock:
            self._taken(memory.address, "pinned")

    # --- streams and events ---

    def new_stream(self) -> int:
        with self._lock:
            self._driver("new_stream")
            number = next(self._numbers)
            self._streams[number] = Stream()
            return number

    def end_stream(self, stream: int) -> None:
        with self._lock:
            if self._streams.pop(stream).queue:
                self.breach("a stream was ended with work in it")

    def new_event(self) -> int:
        with self._lock:
            number = next(self._numbers)
            self._events[number] = None
            return number

    def end_event(self, event: int) -> None:
        with self._lock:
            del self._events[event]

    def record(self, event: int, stream: int) -> None:
        with self._lock:
            self._events[event] = (stream, self._streams[stream].last)

    def is_done(self, event: int) -> bool:
        if not self.held.is_set():
            self.is_asked = True
            return False
        with self._lock:
            self._driver("is_done")
            recorded = self._events[event]
            if recorded is None:
                self.breach("an event was asked for that was never recorded")
            if self._pending(*recorded) and self._random.random() < self._lazy:
                return False
            return self._work_off(*recorded)

    def wait(self, stream: int, event: int) -> None:
        with self._lock:
            recorded = self._events[event]
            if recorded is None:
                self.breach("a wait for an event that was never recorded")
            waits = self._streams[stream]
            known = {recorded[0]: recorded[1]} | (
                self._streams[recorded[0]].known if recorded[0] in self._streams else {}
            )
            for other, number in known.items():
                waits.known[other] = max(number, waits.known.get(other, 0))

    def copy(self, to: int, source: int, nbytes: int, stream: int) -> None:
        def run() -> None:
            self.write(to, self.read(source, nbytes))

        self.launch(run, [(source, nbytes)], [(to, nbytes)], stream, may_race=True)

    def clear(self, address: int, nbytes: int, stream: int) -> None:
        self.launch(lambda: self.write(address, bytes(nbytes)), [], [(address, nbytes)], stream)

    # --- for kernels, and tests that write as an engine's kernels do ---

    def launch(
        self,
        run: Callable[[], None],
        reads: list[tuple[int, int]],
        writes: list[tuple[int, int]],
        stream: int,
        *,
        may_race: bool = False,
        is_ready: Callable[[], bool] = lambda: True,
    ) -> None:
        """`may_race`: what it reads may be overwritten meanwhile, as generations allow; it reads poison then."""
        with self._lock:
            self._driver("launch")
            if stream not in self._streams:
                self.breach("work for a stream that has ended")
            for address, nbytes in reads + writes:
                self._span(address, nbytes)
            self._check_races([] if may_race else reads, writes, stream)
            for address, nbytes in writes:
                self.write(address, bytes([POISON]) * nbytes)
            work = Work(next(self._numbers), run, reads, writes, is_ready)
            self._streams[stream].queue.append(work)
            self._streams[stream].last = work.number

    def read(self, address: int, nbytes: int) -> bytes:
        """For work that is being done: what is there now."""
        span = self._span(address, nbytes)
        begin = address - span.address
        return span.memory[begin : begin + nbytes]

    def write(self, address: int, content: bytes) -> None:
        span = self._span(address, len(content))
        begin = address - span.address
        span.memory[begin : begin + len(content)] = content

    def memory(self, address: int) -> memoryview:
        """An allocation, for kernels of the host; with `host_addresses` they reach it by its address too."""
        return memoryview(self._span(address, 1).memory)

    def check(self) -> None:
        """Fails if an order was wrong, on whatever thread."""
        assert not self.breaches, self.breaches

    @property
    def left(self) -> dict[str, int]:
        """What was not given back."""
        with self._lock:
            kinds = [span.kind for span in self._spans.values()]
            counts = {kind: kinds.count(kind) for kind in ("own", "peer", "pinned")}
            return {
                name: n
                for name, n in (counts | {"streams": len(self._streams), "events": len(self._events)}).items()
                if n
            }

    # --- within ---

    def _driver(self, call: str) -> None:
        if self.fail_next == call:
            self.fail_next = None
            if call == "is_done":  # the device failed in what it was doing: the rest is not done any more
                for stream in self._streams.values():
                    stream.queue.clear()
            raise DeviceError(f"{call}: unknown error (injected)")

    def _map(self, kind: str, nbytes: int, fd: int = -1) -> Span:
        if fd < 0:
            fd = os.memfd_create("fake-device", os.MFD_CLOEXEC)
            os.ftruncate(fd, nbytes)
        memory = mmap.mmap(fd, nbytes)
        if kind == "pinned":
            os.close(fd)
        if kind != "peer":
            memory[:] = bytes([POISON]) * nbytes
        place = ctypes.addressof(ctypes.c_ubyte.from_buffer(memory)) if self._host_addresses else self._next
        span = Span(place, memory, kind, fd)
        self._next += -(-nbytes // 4096) * 4096 + 4096
        self._spans[span.address] = span
        return span

    def _span(self, address: int, nbytes: int, kind: str = "") -> Span:
        for span in self._spans.values():
            if span.address <= address and address + nbytes <= span.end and kind in ("", span.kind):
                return span
        return self.breach(f"{nbytes} bytes at {address:#x} are not memory, or not any more")

    def _taken(self, address: int, kind: str) -> Span:
        span = self._spans.get(address)
        if span is None or span.kind != kind:
            return self.breach(f"no {kind} memory at {address:#x}")
        for stream in self._streams.values():
            for work in stream.queue:
                for begin, nbytes in work.reads + work.writes:
                    if begin < span.end and span.address < begin + nbytes:
                        self.breach(f"{kind} memory was given back while work on it was under way")
        return self._spans.pop(address)

    def _check_races(self, reads: list[tuple[int, int]], writes: list[tuple[int, int]], stream: int) -> None:
        """What is given to a stream may not meet other streams' work that it does not wait for."""
        for number, other in self._streams.items():
            if number == stream:
                continue
            for work in other.queue:
                if work.number <= self._streams[stream].known.get(number, 0):
                    continue
                if _meet(reads + writes, work.writes) or _meet(writes, work.reads):
                    self.breach("work does not wait for the event of what it meets on another stream")

    def _pending(self, stream: int, number: int) -> bool:
        known = self._streams.get(stream)
        return known is not None and any(work.number <= number for work in known.queue)

    def _work_off(self, stream: int, number: int) -> bool:
        """Whether all of it could be done."""
        known = self._streams.get(stream)
        if known is None:
            return True
        before = [self._work_off_once(*other) for other in known.known.items()]
        return all(before) and self._work_off_once(stream, number)

    def _work_off_once(self, stream: int, number: int) -> bool:
        known = self._streams.get(stream)
        while known is not None and known.queue and known.queue[0].number <= number:
            if not known.queue[0].is_ready():
                return False
            known.queue[0].run()
            known.queue.pop(0)
        return True

    def breach(self, what: str) -> Span:
        self.breaches.append(what)
        raise Breach(what)


class FakeKernels:
    """`device_runtime.BlockKernels` on a fake device."""

    def __init__(self, device: FakeDevice) -> None:
        self._device = device

    def copy_blocks(
        self, to: int, to_ids: int, source: int, source_ids: int, blocks: int, block_bytes: int, stream: int
    ) -> None:
        pairs = list(zip(self._ids(to_ids, blocks), self._ids(source_ids, blocks), strict=True))
        reads = [(source + here * block_bytes, block_bytes) for _, here in pairs]
        writes = [(to + there * block_bytes, block_bytes) for there, _ in pairs]
        ids = [(to_ids, 8 * blocks), (source_ids, 8 * blocks)]

        def run() -> None:
            """Ids are read when the kernel runs: whoever changed them meanwhile copies other blocks."""
            now = zip(self._ids(to_ids, blocks), self._ids(source_ids, blocks), strict=True)
            for there, here in now:
                self._device.write(
                    to + there * block_bytes, self._device.read(source + here * block_bytes, block_bytes)
                )

        self._device.launch(run, reads + ids, writes, stream, may_race=True)

    def checksum_workspace(self, blocks: int, block_bytes: int) -> int:
        return 16 * blocks

    def checksum(
        self,
        sums: int,
        data: int,
        ids: int,
        blocks: int,
        block_bytes: int,
        workspace: int,
        stream: int,
        tokens: int = 0,
        rows: BlockRows | None = None,
    ) -> None:
        def run() -> None:
            counts = (0,) * blocks if rows is None else self._ids(tokens, blocks)
            for i, block in enumerate(self._ids(ids, blocks)):
                found = checksum(self._device.read(data + block * block_bytes, block_bytes), rows, counts[i])
                self._device.write(sums + 16 * i, found)

        reads = [(data + block * block_bytes, block_bytes) for block in self._ids(ids, blocks)]
        writes = [(sums, 16 * blocks), (workspace, 16 * blocks)]
        arrays = [(address, 8 * blocks) for address in (ids, tokens) if address]
        self._device.launch(run, [*reads, *arrays], writes, stream)

    def _ids(self, address: int, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}q", self._device.read(address, 8 * count))


def _meet(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> bool:
    return any(a < b + m and b < a + n for a, n in some for b, m in others)
