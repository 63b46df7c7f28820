"""The prefill worker's side of hand-offs: I/O around `lease.LeaseTable`."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace

import grpc
import grpc.aio
import structlog

from kvtransfer import registry
from kvtransfer.control import CODE_METADATA, SESSION_METADATA, announce_message, layout_difference
from kvtransfer.device_pool import DevicePoolMemory
from kvtransfer.faults import DROP_FINAL, FaultPlan
from kvtransfer.handoff import BlockRange, KvFinalData, RequestKey, WorkerIdentity
from kvtransfer.lease import LeaseAction, LeaseTable, Release, SendAnnounce, SendFailed
from kvtransfer.pool import KVPool
from kvtransfer.push import PushGrant, PushTarget
from kvtransfer.push_source import PushSource
from kvtransfer.transport import PeerPool, SourceFactory, SourceTransport, TransportError
from wire.errors import ErrorCode, SpliceError
from wire.v1 import kv_pb2, kv_pb2_grpc

_log = structlog.get_logger(__name__)
_TICK_S = 0.05
_UNUSED_SESSION_S = 30.0
_MAX_SESSIONS = 1024

Outbox = asyncio.Queue[kv_pb2.KvSourceMessage]


@dataclass(frozen=True, slots=True)
class SourceStats:
    blocks_announced: int = 0
    leases_active: int = 0
    leases_expired: int = 0
    consumers: int = 0


@dataclass(slots=True)
class _Session:
    """One Hello: what it handed out, and whether its channel was opened."""

    consumer_worker: str
    consumer_incarnation: int
    capabilities: list[tuple[str, bytes]]
    made_at_s: float
    opened: bool = False


class KvSource(kv_pb2_grpc.KvSourceServicer):
    """Announces sealed blocks to the consumers that subscribed, and holds them under a lease.

    `on_release(key, reason)` tells, on any thread, that a request's blocks may be reused; it comes for every key that
    was announced or subscribed to, and again for what is announced after the end.
    """

    def __init__(
        self,
        pool: KVPool,
        identity: WorkerIdentity,
        *,
        lease_ttl_s: float,
        transports: Sequence[str],
        on_release: Callable[[RequestKey, str], None],
        host: str,
        faults: FaultPlan | None = None,
        factories: Mapping[str, SourceFactory] | None = None,
        push: bool = False,
    ) -> None:
        """`transports` best first; `host` is the address they bind and offer. With `push`, consumers on this host may
        grant their blocks to what is computed here (`push_target`); the pool must lie on a device."""
        if factories is None:
            factories = registry.sources_of(pool)
        self._pool = pool
        self._identity = identity
        self._transports = registry.checked(transports, list(factories), registry.missing_for(pool))
        self._on_release = on_release
        self._host = host
        self._faults = faults or FaultPlan()
        self._factories = factories
        self._lock = threading.Lock()
        self._leases = LeaseTable(lease_ttl_s)
        self._serving: dict[str, SourceTransport] = {}
        self._sessions: dict[str, _Session] = {}
        self._outboxes: dict[int, Outbox] = {}
        self._consumer_numbers = itertools.count(1)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._blocks_announced = 0
        self._pusher: PushSource | None = None
        if push:
            if not isinstance(pool, DevicePoolMemory):
                raise SpliceError(ErrorCode.BAD_SETTING, "only a device stores in a peer's memory", param="kv_push")
            self._pusher = PushSource(pool, self._send_quiet)
        # One thread, so that a request's ranges are announced in their order.
        self._sealer = ThreadPoolExecutor(1, thread_name_prefix="kv-seal")

    @property
    def pushes(self) -> bool:
        """Whether consumers may grant their blocks."""
        return self._pusher is not None

    @property
    def stats(self) -> SourceStats:
        with self._lock:
            return SourceStats(
                self._blocks_announced, len(self._leases), self._leases.expired_total, len(self._outboxes)
            )

    def add_to_server(self, server: grpc.aio.Server) -> None:
        kv_pb2_grpc.add_KvSourceServicer_to_server(self, server)

    async def start(self) -> None:
        """On the loop of the gRPC server, before it serves.

        A transport that cannot be served is passed over; raises SpliceError(BAD_SETTING) if that leaves none.
        """
        self._loop = asyncio.get_running_loop()
        for name in self._transports:
            try:
                self._serving[name] = await asyncio.to_thread(self._factories[name], self._pool, self, self._host)
            except TransportError as error:
                _log.warning("kv transport not served", transport=name, error=str(error))
        if not self._serving:
            raise SpliceError(
                ErrorCode.BAD_SETTING,
                f"none of the KV transports {', '.join(self._transports)} can be served on {self._host}",
                param="kv_transports",
            )
        self._ticker = asyncio.create_task(self._tick())

    async def close(self) -> None:
        """After the gRPC server has stopped; returns when nothing touches the pool any more."""
        if self._ticker is not None:
            self._ticker.cancel()
            with suppress(asyncio.CancelledError):
                await self._ticker
        await asyncio.to_thread(self._sealer.shutdown)
        if self._pusher is not None:
            await asyncio.to_thread(self._pusher.close)
        for transport in self._serving.values():
            await asyncio.to_thread(transport.close)
        self._serving.clear()

    # --- the worker's engine thread ---

    def announce(
        self,
        key: RequestKey,
        first_block: int,
        block_ids: Sequence[int],
        num_tokens: int,
        final: KvFinalData | None,
        written: int | None = None,
        pushed_from: int | None = None,
    ) -> None:
        """These blocks are complete: seals them with a digest and lets them be read. Thread-safe.

        `first_block` is the first one's index within the request; `final` comes with the last range (which may be
        empty). Nothing may be written to them until `on_release`. Of a pool on a device, `written` is the event behind
        the blocks' write: the call returns at once, and they are announced when the device has passed it. Of those
        from block `pushed_from` of the request on, every row was stored where `push_target` said, too.
        """
        generations = tuple(self._pool.get(block) for block in block_ids)
        whole = BlockRange(first_block, tuple(block_ids), generations, (b"",) * len(block_ids), num_tokens)
        block_tokens = self._pool.layout.block_tokens
        tokens = [whole.tokens_of(first_block + i, block_tokens) for i in range(len(block_ids))]
        seal = self._pool.seal(block_ids, written, tokens)

        def announce() -> None:
            sealed = replace(whole, digests=seal.digests())
            with self._lock:
                self._blocks_announced += len(sealed.block_ids)
                *firsts, last = sealed.split(pushed_from)
                for blocks in firsts:
                    self._perform(self._leases.announce(key, blocks, None, time.monotonic()))
                self._perform(self._leases.announce(key, last, final, time.monotonic()))

        if seal.is_ready:
            announce()
        else:
            self._sealer.submit(self._announce_later, key, announce)

    def _announce_later(self, key: RequestKey, announce: Callable[[], None]) -> None:
        try:
            announce()
        except Exception as unexpected:  # what is not announced must be told, or its consumer waits for ever
            _log.exception("kv blocks cannot be sealed", request=key)
            self.fail(key, SpliceError(ErrorCode.KV_TRANSFER_FAILED, f"blocks cannot be sealed: {unexpected!r}"))

    def push_target(self, key: RequestKey) -> PushTarget | None:
        """Where one launch may store the request's rows besides; None: nowhere. `stored` must follow. Thread-safe."""
        return self._pusher.target(key) if self._pusher is not None else None

    def stored(self, keys: Sequence[RequestKey], written: int | None) -> None:
        """The launch that was given a target for each of `keys` was made, with the event `written` behind it, which
        may be recorded anew after this; None: it was not. Thread-safe."""
        if self._pusher is None:
            raise SpliceError(ErrorCode.INTERNAL_ERROR, f"requests {keys} have no push target")
        self._pusher.stored(keys, written)

    def fail(self, key: RequestKey, error: SpliceError) -> None:
        """The request cannot be completed here; whoever subscribed, or will, is told. Thread-safe."""
        with self._lock:
            self._perform(self._leases.fail(key, error.code, error.message, time.monotonic()))

    # --- transports (ReadGate) ---

    def begin_read(self, key: RequestKey, block: int, generation: int) -> bool:
        with self._lock:
            return self._leases.begin_read(key, block, generation)

    def end_read(self, key: RequestKey) -> None:
        with self._lock:
            self._perform(self._leases.end_read(key))

    # --- gRPC ---

    async def Hello(
        self, request: kv_pb2.KvHello, context: grpc.aio.ServicerContext[kv_pb2.KvHello, kv_pb2.KvWelcome]
    ) -> kv_pb2.KvWelcome:
        refusal = self._refusal(request)
        if refusal is not None:
            code, message = refusal
            context.set_trailing_metadata(((CODE_METADATA, code.value),))
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, message)
        self._drop_unused_sessions()
        if len(self._sessions) >= _MAX_SESSIONS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{_MAX_SESSIONS} consumers are connected already")
        offers, capabilities = [], []
        for name in request.transports:
            same_host = request.host_id == self._identity.host_id
            if name in self._serving and (same_host or name not in registry.SAME_HOST_ONLY):
                address, capability = self._serving[name].offer()
                offers.append(kv_pb2.TransportOffer(name=name, address=address))
                capabilities.append((name, capability))
        session = secrets.token_hex(16)
        self._sessions[session] = _Session(
            request.consumer_worker, request.consumer_incarnation, capabilities, time.monotonic()
        )
        return kv_pb2.KvWelcome(
            source_worker=self._identity.worker_id,
            source_incarnation=self._identity.incarnation,
            num_blocks=self._pool.num_blocks,
            lease_ttl_s=self._leases.ttl_s,
            offers=offers,
            session=session,
            takes_pushes=self._pusher is not None and request.host_id == self._identity.host_id,
        )

    async def Channel(
        self,
        request_iterator: AsyncIterator[kv_pb2.KvConsumerMessage],
        context: grpc.aio.ServicerContext[kv_pb2.KvConsumerMessage, kv_pb2.KvSourceMessage],
    ) -> AsyncIterator[kv_pb2.KvSourceMessage]:
        shown = [value for name, value in context.invocation_metadata() or () if name == SESSION_METADATA]
        session = self._sessions.get(str(shown[0])) if shown else None
        if session is None or session.opened:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "Channel needs the session of a Hello of its own")
        session.opened = True
        consumer = next(self._consumer_numbers)
        outbox: Outbox = asyncio.Queue()
        with self._lock:
            self._outboxes[consumer] = outbox
        reader = asyncio.create_task(self._read(consumer, session, request_iterator))
        sender: asyncio.Task[kv_pb2.KvSourceMessage] | None = None
        try:
            while True:
                sender = asyncio.create_task(outbox.get())
                done, _ = await asyncio.wait((reader, sender), return_when=asyncio.FIRST_COMPLETED)
                if sender in done:
                    yield sender.result()
                elif reader in done:
                    return
        finally:
            reader.cancel()
            if sender is not None:
                sender.cancel()
            self._consumer_ended(consumer, session, str(shown[0]))

    async def _read(self, consumer: int, session: _Session, messages: AsyncIterator[kv_pb2.KvConsumerMessage]) -> None:
        async for message in messages:
            now_s = time.monotonic()
            with self._lock:
                match message.WhichOneof("body"):
                    case "subscribe":
                        body = message.subscribe
                        key = (body.request, body.attempt)
                        self._perform(self._leases.subscribe(consumer, key, body.skip_blocks, now_s))
                    case "renew":
                        keys = zip(message.renew.request, message.renew.attempt, strict=False)
                        self._leases.renew(consumer, keys, now_s)
                    case "release":
                        key = (message.release.request, message.release.attempt)
                        self._perform(self._leases.release(consumer, key, message.release.reason, now_s))
                    case "grant":
                        self._granted(consumer, session.consumer_incarnation, message.grant)
                    case _:
                        _log.warning("kv message of an unknown kind ignored", consumer=consumer)

    def _granted(self, consumer: int, incarnation: int, message: kv_pb2.KvPushGrant) -> None:
        """Under the lock. What cannot be used, or comes after the lease has ended, is quiet at once."""
        key = (message.request, message.attempt)
        if self._pusher is None or not self._leases.is_held_by(consumer, key):
            self._send_quiet(consumer, key)
            return
        layout = self._pool.layout
        peer = PeerPool(layout.layout_id, incarnation, message.num_blocks, layout.block_bytes)
        if any(block >= message.num_blocks for block in message.dest_block):
            _log.warning("kv grant beyond the consumer's pool not used", consumer=consumer)
            self._send_quiet(consumer, key)
            return
        grant = PushGrant(message.first_block, tuple(message.dest_block))
        self._pusher.granted(consumer, key, grant, message.address, peer)

    def _send_quiet(self, consumer: int, key: RequestKey) -> None:
        quiet = kv_pb2.KvPushQuiet(request=key[0], attempt=key[1])
        self._send(consumer, kv_pb2.KvSourceMessage(quiet=quiet))

    def _refusal(self, hello: kv_pb2.KvHello) -> tuple[ErrorCode, str] | None:
        ours = self._identity
        if hello.source_incarnation != ours.incarnation:
            return ErrorCode.INCARNATION_MISMATCH, (
                f"source_incarnation is {ours.incarnation:#x}, the consumer expected {hello.source_incarnation:#x}: "
                f"{ours.worker_id} was restarted"
            )
        difference = layout_difference(self._pool.layout, hello.layout)
        if difference is not None:
            return ErrorCode.LAYOUT_MISMATCH, difference
        if hello.compat_id != ours.compat_id:
            return ErrorCode.LAYOUT_MISMATCH, (
                f"compat_id is {ours.compat_id} at the source and {hello.compat_id} at the consumer: "
                "serve the same model, dtype and build on both"
            )
        return None

    def _drop_unused_sessions(self) -> None:
        oldest_s = time.monotonic() - _UNUSED_SESSION_S
        for name, session in list(self._sessions.items()):
            if not session.opened and session.made_at_s < oldest_s:
                self._revoke(name)

    def _consumer_ended(self, consumer: int, session: _Session, name: str) -> None:
        with self._lock:
            del self._outboxes[consumer]
            self._perform(self._leases.consumer_lost(consumer, time.monotonic()))
        self._revoke(name)
        if self._pusher is not None:
            self._pusher.consumer_lost(consumer)
        _log.info("kv consumer left", consumer=session.consumer_worker)

    def _revoke(self, session_name: str) -> None:
        for name, capability in self._sessions.pop(session_name).capabilities:
            if name in self._serving:
                self._serving[name].revoke(capability)

    # --- actions ---

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            with self._lock:
                self._perform(self._leases.tick(time.monotonic()))

    def _perform(self, actions: list[LeaseAction]) -> None:
        """Under the lock, so that each consumer sees its messages in the order they were decided."""
        for action in actions:
            match action:
                case Release(key, reason):
                    if self._pusher is not None:
                        self._pusher.ended(key)
                    self._on_release(key, reason)
                case SendAnnounce(consumer, key, blocks, final):
                    if final is not None and self._faults.fires(DROP_FINAL):
                        final = None
                    self._send(consumer, announce_message(key, blocks, self._pool.layout.num_layers, final))
                case SendFailed(consumer, (request, attempt), code, message):
                    failed = kv_pb2.KvHoldFailed(request=request, attempt=attempt, code=code.value, message=message)
                    self._send(consumer, kv_pb2.KvSourceMessage(failed=failed))

    def _send(self, consumer: int, message: kv_pb2.KvSourceMessage) -> None:
        outbox = self._outboxes.get(consumer)
        if outbox is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(outbox.put_nowait, message)
