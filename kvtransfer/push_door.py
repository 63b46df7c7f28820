"""The consumer's side of pushes: who may map its pool and write to it, and when they do not any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import structlog

from kvtransfer.device_pool import DevicePoolMemory
from kvtransfer.handoff import RequestKey, SourceAddress
from kvtransfer.peer import Peer
from kvtransfer.pool import KVPool
from kvtransfer.push_choice import KvPush, MeasuredHandoff, PushChoice
from kvtransfer.transport import TransportError
from kvtransfer.transports.cuda_ipc import CudaIpcSource
from wire.errors import ErrorCode, SpliceError
from wire.v1 import kv_pb2

_log = structlog.get_logger(__name__)


class PushDoor:
    """Opens our pool to sources; a source that left is waited for until it has unmapped it, or its process is gone."""

    def __init__(self, pool: KVPool, on_gone: Callable[[Peer], None], mode: KvPush = "on") -> None:
        """`on_gone(peer)`, on any thread, once for each peer that was lost: nothing of it writes here any more."""
        if not isinstance(pool, DevicePoolMemory):
            raise SpliceError(ErrorCode.BAD_SETTING, "only a pool on a device can be pushed to", param="kv_push")
        self._pool = pool
        self._on_gone = on_gone
        self._mode = mode
        self._choices: dict[SourceAddress, PushChoice] = {}
        self._lock = threading.Lock()
        self._offers: dict[Peer, tuple[bytes, bytes]] = {}
        self._peers: dict[bytes, Peer] = {}
        self._source: CudaIpcSource | None = None

    async def start(self) -> None:
        """Where memory cannot be shared nothing is granted."""
        try:
            self._source = await asyncio.to_thread(CudaIpcSource, self._pool, None, "", self._unmapped)
        except TransportError as error:
            _log.warning("kv blocks are pulled, not pushed", error=str(error))

    async def close(self) -> None:
        """Returns when no peer maps the pool, and `on_gone` has said so; or gives up on those that do."""
        if self._source is not None:
            await asyncio.to_thread(self._source.close)

    def choose(self, peer: Peer, num_blocks: int) -> bool | None:
        """Whether so many blocks of a request are to be pushed, once for each; None: there is no choice."""
        if self._source is None or not peer.takes_pushes or not num_blocks:
            return None
        with self._lock:
            choice = self._choices.setdefault(peer.source, PushChoice(self._mode))
            return choice.wants_push(num_blocks * self._pool.layout.block_tokens)

    def ended(self, peer: Peer, wanted: bool, pushed: bool, one: MeasuredHandoff) -> None:
        """What a hand-off cost of which `choose` said `wanted`."""
        with self._lock:
            choice = self._choices.get(peer.source)
            if choice is not None:
                choice.ended(wanted, pushed, one)

    def grant(
        self, peer: Peer, key: RequestKey, first_block: int, blocks: tuple[int, ...]
    ) -> kv_pb2.KvConsumerMessage | None:
        """What lets the peer write to `blocks`; None if it cannot."""
        if self._source is None or not peer.takes_pushes or not blocks:
            return None
        with self._lock:
            if peer not in self._offers:
                self._offers[peer] = self._source.offer()
                self._peers[self._offers[peer][1]] = peer
            address, _ = self._offers[peer]
        return kv_pb2.KvConsumerMessage(
            grant=kv_pb2.KvPushGrant(
                request=key[0],
                attempt=key[1],
                first_block=first_block,
                dest_block=blocks,
                address=address,
                num_blocks=self._pool.num_blocks,
            )
        )

    def lost(self, peer: Peer) -> None:
        """The peer's channel has ended: it unmaps our memory when it does not write there any more."""
        with self._lock:
            offer = self._offers.pop(peer, None)
            self._choices.pop(peer.source, None)
        if self._source is None or offer is None:
            return
        self._source.revoke(offer[1])
        if not self._source.is_mapped(offer[1]):
            self._unmapped(offer[1])

    def _unmapped(self, capability: bytes) -> None:
        with self._lock:
            peer = self._peers.pop(capability, None)
            if peer is not None:
                self._offers.pop(peer, None)
        if peer is not None:
            self._on_gone(peer)
