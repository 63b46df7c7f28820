"""A worker's KV pool in the memory of a GPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from kvtransfer.device_lane import DeviceLane, DeviceLanes
from kvtransfer.device_runtime import BlockKernels, DeviceError, DeviceRuntime
from kvtransfer.kv_checksum import CHUNK_BYTES, BlockRows
from kvtransfer.peer_mappings import PeerMappings
from kvtransfer.pool_header import PoolHeader
from kvtransfer.pool_table import PoolTable
from wire.errors import ErrorCode, SpliceError
from wire.kv_layout import KVLayout

_log = structlog.get_logger(__name__)
_BATCH_BLOCKS = 256
_LANES = 6
"""Two copies, and seals of steps that overlap; more are made when they are needed."""


class DevicePoolMemory:
    """Blocks in one allocation of device memory, header and generations in a memfd. Thread-safe.

    Protocol and generations are those of a pool in host memory: the owner bumps, then launches what overwrites. A
    block's digest is `kv_checksum`'s, made by a kernel behind the event of the block's write. Host code reaches blocks
    only by `lent` and `filling`, which copy through pinned memory.

    Closed when no copy of ours runs; the memory is freed then, unless a peer still maps it (`keep_until_exit`).
    """

    batch_blocks = _BATCH_BLOCKS

    def __init__(
        self, layout: KVLayout, num_blocks: int, incarnation: int, runtime: DeviceRuntime, kernels: BlockKernels
    ) -> None:
        """All blocks zero, all generations 0; raises SpliceError(BAD_SETTING) if the device cannot hold it."""
        if num_blocks < 1:
            raise SpliceError(ErrorCode.BAD_SETTING, f"a KV pool needs ≥ 1 block, got {num_blocks}", param="num_blocks")
        if layout.block_bytes % CHUNK_BYTES:
            raise SpliceError(
                ErrorCode.BAD_SETTING,
                f"KV blocks of {layout.block_bytes} bytes on a device, expected a multiple of {CHUNK_BYTES}",
                param="block_size",
            )
        self.layout = layout
        self.num_blocks = num_blocks
        self.incarnation = incarnation
        self.runtime = runtime
        self.nbytes = num_blocks * layout.block_bytes
        layers, planes, heads, _, _ = layout.block_shape
        row_bytes = layout.block_bytes // (layers * planes * heads * layout.block_tokens)
        self._rows = BlockRows(row_bytes, layout.block_tokens)
        self.mappings = PeerMappings(runtime)
        self._table = PoolTable(PoolHeader(layout.layout_id, incarnation, num_blocks, layout.block_bytes))
        self._lanes = DeviceLanes(runtime, kernels, self.batch_blocks, layout.block_bytes)
        self._lock = threading.Lock()
        self._export: tuple[bytes, int] | None = None
        self._kept: str | None = None
        self.address = 0
        try:
            self.address = runtime.allocate(self.nbytes)
            self._lanes.prepare(_LANES)
            with self._lanes.lane() as lane:
                lane.clear(self.address, self.nbytes)
        except DeviceError as error:
            self._table.close()
            self._lanes.close()
            if self.address:
                runtime.free(self.address)
            raise SpliceError(
                ErrorCode.BAD_SETTING,
                f"cannot reserve a KV pool of {self.nbytes} bytes ({num_blocks} blocks) on the device: {error}; "
                "lower --gpu-memory-utilization, --kv-cache-memory or --num-kv-blocks, or free the device's memory",
                param="num_blocks",
            ) from error

    @property
    def table_fd(self) -> int:
        """Of the memfd with header and generations."""
        return self._table.fd

    def table(self) -> memoryview:
        """Header and generations, in host memory."""
        return self._table.whole()

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """uint8 `[num_blocks, layout.block_bytes]`, for torch or CuPy to view; valid until the pool is closed."""
        shape = (self.num_blocks, self.layout.block_bytes)
        return {"shape": shape, "typestr": "|u1", "data": (self.address, False), "version": 3}

    def export(self) -> tuple[bytes, int]:
        """(handle, offset of block 0) by which a peer maps the blocks; raises DeviceError where that cannot be."""
        with self._lock:
            if self._export is None:
                self._export = self.runtime.export(self.address)
            return self._export

    def keep_until_exit(self, why: str) -> None:
        """The memory is not freed by `close`: the driver takes it back with the process."""
        self._kept = why

    def bump(self, block: int) -> int:
        return self._table.bump(block)

    def get(self, block: int) -> int:
        return self._table.get(block)

    def seal(
        self, blocks: Sequence[int], written: int | None = None, tokens: Sequence[int] | None = None
    ) -> DeviceSeal:
        """Launches the sums behind the event `written` and returns; the event may be recorded anew after that.

        Raises SpliceError(KV_TRANSFER_FAILED) where the device refuses.
        """
        if written is None:
            raise SpliceError(ErrorCode.INTERNAL_ERROR, "blocks on a device are sealed behind the event of their write")
        try:
            return DeviceSeal(self._lanes, self.address, list(self._parts(blocks, tokens)), written)
        except DeviceError as error:
            raise SpliceError(ErrorCode.KV_TRANSFER_FAILED, f"blocks cannot be sealed: {error}") from error

    def digests(self, blocks: Sequence[int], tokens: Sequence[int] | None = None) -> tuple[bytes, ...]:
        found: list[bytes] = []
        for part in self._parts(blocks, tokens):
            with self._lanes.lane() as lane:
                part.launch(lane, self.address)
                lane.finish()
                found += lane.sums(len(part.blocks))
        return tuple(found)

    def behind(self, written: int) -> DeviceMark:
        """What the device had been given when `written` was recorded; the event may be recorded anew after this."""
        return DeviceMark(self._lanes, written)

    def pull(self, blocks: Sequence[int], peer: int, peer_blocks: Sequence[int]) -> None:
        """Block `peer_blocks[i]` of the pool mapped at `peer` to our `blocks[i]`: at most `batch_blocks`, one launch.

        Returns when the bytes are there; raises DeviceError. Nothing of it runs any more in either case.
        """
        with self._lanes.lane() as lane:
            lane.copy_blocks(self.address, self._checked(blocks), peer, peer_blocks)

    def copy_out(self, blocks: Sequence[int], places: Sequence[int]) -> None:
        """Block `blocks[i]` to pinned memory at `places[i]`. As `pull`, by the device's copy engines."""
        with self._lanes.lane() as lane:
            for block, place in zip(self._checked(blocks), places, strict=True):
                lane.copy(place, self.place(block))

    def copy_in(self, blocks: Sequence[int], places: Sequence[int]) -> None:
        """Pinned memory at `places[i]` to block `blocks[i]`. As `copy_out`."""
        with self._lanes.lane() as lane:
            for block, place in zip(self._checked(blocks), places, strict=True):
                lane.copy(self.place(block), place)

    def place(self, block: int) -> int:
        """Address of a block; raises IndexError outside the pool."""
        if not 0 <= block < self.num_blocks:
            raise IndexError(f"block {block} is outside a pool of {self.num_blocks}")
        return self.address + block * self.layout.block_bytes

    @contextmanager
    def lane(self) -> Iterator[DeviceLane]:
        """A stream for work of others on our blocks; the pool stays until it is left, and quiet."""
        with self._lanes.lane() as lane:
            yield lane

    @contextmanager
    def lent(self, block: int) -> Iterator[memoryview]:
        with self._lanes.lane() as lane:
            lane.copy(lane.room.address, self.place(block))
            lane.finish()
            yield lane.room.view

    @contextmanager
    def filling(self, block: int) -> Iterator[memoryview]:
        place = self.place(block)
        with self._lanes.lane() as lane:
            try:
                yield lane.room.view
            finally:
                lane.copy(place, lane.room.address)

    def close(self) -> None:
        """Waits for copies under way and for peers' mappings to be closed."""
        if self._table.fd < 0:
            return
        self.mappings.close()
        self._lanes.close()
        self._table.close()
        try:
            if self._kept is None:
                self.runtime.free(self.address)
        except DeviceError as error:
            self._kept = str(error)
        if self._kept is not None:
            _log.error("kv pool on the device is kept until the process ends", reason=self._kept)

    def _parts(self, blocks: Sequence[int], tokens: Sequence[int] | None) -> Iterator[_Summed]:
        """As many as are summed in one launch each; `rows` only where a block is not full."""
        self._checked(blocks)
        for begin in range(0, len(blocks), self.batch_blocks):
            end = begin + self.batch_blocks
            counts = tokens[begin:end] if tokens is not None else ()
            is_ragged = any(count < self.layout.block_tokens for count in counts)
            yield _Summed(blocks[begin:end], counts, self._rows if is_ragged else None)

    def _checked(self, blocks: Sequence[int]) -> Sequence[int]:
        for block in blocks:
            self.place(block)
        return blocks


@dataclass(frozen=True, slots=True)
class _Summed:
    """Blocks whose sums are one launch."""

    blocks: Sequence[int]
    tokens: Sequence[int]
    rows: BlockRows | None

    def launch(self, lane: DeviceLane, address: int, after: int | None = None) -> None:
        lane.checksum(address, self.blocks, after, self.tokens, self.rows)


class DeviceMark:
    """A point in the device's work, in a lane of its own until `wait` has returned."""

    def __init__(self, lanes: DeviceLanes, written: int) -> None:
        self._lanes = lanes
        self._lane = lanes.take()
        try:
            self._lane.follow(written)
        except BaseException:
            lanes.give_back(self._lane)
            raise

    def wait(self) -> None:
        """Once; raises DeviceError if the device has failed."""
        try:
            self._lane.finish()
        finally:
            self._lanes.give_back(self._lane)


class DeviceSeal:
    """Sums under way, in lanes of their own until `digests` has returned."""

    is_ready = False

    def __init__(self, lanes: DeviceLanes, address: int, parts: Sequence[_Summed], written: int) -> None:
        self._lanes = lanes
        self._parts: list[tuple[DeviceLane, int]] = []
        try:
            for part in parts:
                lane = lanes.take()
                self._parts.append((lane, len(part.blocks)))
                part.launch(lane, address, written)
        except BaseException:
            self._end()
            raise

    def digests(self) -> tuple[bytes, ...]:
        """Waits for the device; raises DeviceError."""
        found: list[bytes] = []
        try:
            for lane, count in self._parts:
                lane.finish()
                found += lane.sums(count)
        finally:
            self._end()
        return tuple(found)

    def _end(self) -> None:
        parts, self._parts = self._parts, []
        for lane, _ in parts:
            try:
                lane.finish()
            finally:
                self._lanes.give_back(lane)
