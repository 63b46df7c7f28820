"""Streams on which blocks are copied and summed, each with the memory its launches need."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import structlog

from kvtransfer.device_runtime import BlockKernels, DeviceError, DeviceRuntime, Pinned
from kvtransfer.handoff import DIGEST_BYTES
from kvtransfer.kv_checksum import BlockRows

_log = structlog.get_logger(__name__)
_ID_BYTES = 8
_SPIN_S = 50e-6
_SLEEP_S, _LONGEST_SLEEP_S = 50e-6, 0.01
_NAP_SHARE = 1 / 64
"""Of what has been waited for so far. A device that hangs is waited for with next to no work of the processor, by which
a worker that gets nowhere is told from one that computes."""
_SLOW_S = 10.0


class DeviceLane:
    """One stream, one event, pinned ids and sums; used by one thread at a time, quiet when it is given back."""

    def __init__(self, runtime: DeviceRuntime, kernels: BlockKernels, batch_blocks: int, block_bytes: int) -> None:
        self._runtime = runtime
        self._kernels = kernels
        self._batch_blocks = batch_blocks
        self._block_bytes = block_bytes
        self._event = runtime.new_event()
        self.stream = runtime.new_stream()
        self._ids = runtime.allocate_pinned(3 * batch_blocks * _ID_BYTES)
        self._sums = runtime.allocate_pinned(batch_blocks * DIGEST_BYTES)
        self._workspace = runtime.allocate(max(1, kernels.checksum_workspace(batch_blocks, block_bytes)))
        self._room: Pinned | None = None
        self._busy = False

    @property
    def room(self) -> Pinned:
        """Pinned memory of one block; taken when it is first needed."""
        if self._room is None:
            self._room = self._runtime.allocate_pinned(self._block_bytes)
        return self._room

    def copy_blocks(self, to: int, to_ids: Sequence[int], source: int, source_ids: Sequence[int]) -> None:
        """One launch: block `source_ids[i]` at `source` to block `to_ids[i]` at `to`."""
        self._busy = True
        to_at, source_at = self._put_ids(0, to_ids), self._put_ids(1, source_ids)
        self._kernels.copy_blocks(to, to_at, source, source_at, len(to_ids), self._block_bytes, self.stream)

    def checksum(
        self,
        data: int,
        blocks: Sequence[int],
        after: int | None = None,
        tokens: Sequence[int] = (),
        rows: BlockRows | None = None,
    ) -> None:
        """Launched, behind the event `after` if given; `sums` has them after `finish`. With `rows`, of each block's
        first `tokens`."""
        self._busy = True
        if after is not None:
            self.follow(after)
        ids = self._put_ids(0, blocks)
        counts = 0 if rows is None else self._put_ids(2, tokens)
        count, size = len(blocks), self._block_bytes
        self._kernels.checksum(self._sums.address, data, ids, count, size, self._workspace, self.stream, counts, rows)

    def follow(self, event: int) -> None:
        """What is launched from now on, and `finish`, come after the event."""
        self._busy = True
        self._runtime.wait(self.stream, event)

    def copy(self, to: int, source: int) -> None:
        """One block's bytes, between pinned memory and a device's."""
        self._busy = True
        self._runtime.copy(to, source, self._block_bytes, self.stream)

    def clear(self, address: int, nbytes: int) -> None:
        self._busy = True
        self._runtime.clear(address, nbytes, self.stream)

    def launched(self) -> None:
        """Work that is not the lane's own was given to `stream`, all of it: `is_done` is of that, `finish` waits."""
        self._busy = True
        self._runtime.record(self._event, self.stream)

    def is_done(self) -> bool:
        """Does not wait. Raises DeviceError if the device has failed."""
        return self._runtime.is_done(self._event)

    def finish(self) -> None:
        """Returns when all that was launched is done: spins shortly, then sleeps in short naps, without the lock.

        There is no giving up: work on a device cannot be called back, and memory it may still write to is not free.
        Raises DeviceError if the device has failed; nothing runs on it then.
        """
        if not self._busy:
            return
        self._runtime.record(self._event, self.stream)
        began_s = time.monotonic()
        warned = False
        while not self._runtime.is_done(self._event):
            waited_s = time.monotonic() - began_s
            if waited_s > _SPIN_S:
                time.sleep(min(max(_SLEEP_S, waited_s * _NAP_SHARE), _LONGEST_SLEEP_S))
            if waited_s > _SLOW_S and not warned:
                warned = True
                _log.warning("kv copy on the device takes long", seconds=waited_s)
        self._busy = False

    def sums(self, count: int) -> tuple[bytes, ...]:
        view = self._sums.view
        return tuple(bytes(view[i * DIGEST_BYTES : (i + 1) * DIGEST_BYTES]) for i in range(count))

    def close(self) -> None:
        for memory in (self._ids, self._sums, self._room):
            if memory is not None:
                self._runtime.free_pinned(memory)
        self._runtime.free(self._workspace)
        self._runtime.end_event(self._event)
        self._runtime.end_stream(self.stream)

    def _put_ids(self, part: int, ids: Sequence[int]) -> int:
        if len(ids) > self._batch_blocks:
            raise ValueError(f"{len(ids)} blocks in one launch, at most {self._batch_blocks}")
        offset = part * self._batch_blocks * _ID_BYTES
        struct.pack_into(f"<{len(ids)}q", self._ids.view, offset, *ids)
        return self._ids.address + offset


class DeviceLanes:
    """As many lanes as threads copied at once; `close` waits until all are back."""

    def __init__(self, runtime: DeviceRuntime, kernels: BlockKernels, batch_blocks: int, block_bytes: int) -> None:
        self._runtime = runtime
        self._kernels = kernels
        self._batch_blocks = batch_blocks
        self._block_bytes = block_bytes
        self._idle: list[DeviceLane] = []
        self._taken = 0
        self._closed = False
        self._changed = threading.Condition()

    def prepare(self, count: int) -> None:
        """Makes so many now: to allocate memory may hold up the whole device, which no step should find out."""
        for lane in [self.take() for _ in range(count)]:
            self.give_back(lane)

    def take(self) -> DeviceLane:
        """To be given back. Raises DeviceError when closed, or when the device has no memory for another."""
        with self._changed:
            if self._closed:
                raise DeviceError("the pool is closed")
            self._taken += 1
            lane = self._idle.pop() if self._idle else None
        if lane is not None:
            return lane
        try:
            return DeviceLane(self._runtime, self._kernels, self._batch_blocks, self._block_bytes)
        except BaseException:
            with self._changed:
                self._taken -= 1
                self._changed.notify_all()
            raise

    def give_back(self, lane: DeviceLane) -> None:
        """Quiet: after its `finish` has returned or raised."""
        with self._changed:
            self._taken -= 1
            self._idle.append(lane)
            self._changed.notify_all()

    @contextmanager
    def lane(self) -> Iterator[DeviceLane]:
        """Leaves no work behind, however it is left."""
        lane = self.take()
        try:
            yield lane
        finally:
            try:
                lane.finish()
            finally:
                self.give_back(lane)

    def close(self) -> None:
        """Returns when no lane is in use; none can be taken any more. A device that failed takes nothing back: what it
        says then is not what went wrong, and is for the log."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._taken == 0)
            idle, self._idle = self._idle, []
        try:
            for lane in idle:
                lane.close()
        except DeviceError as error:
            _log.error("kv lanes on the device are left to the end of the process", reason=str(error))
