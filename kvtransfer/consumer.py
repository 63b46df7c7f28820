"""The decode worker's side of hand-offs: I/O around one `fetch.FetchMachine` per request."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import structlog

from kvtransfer import registry
from kvtransfer.checked_copy import copy_and_check
from kvtransfer.consumer_stats import ConsumerStats, handoff_stats
from kvtransfer.control import announced
from kvtransfer.copy_queue import CopyQueue, Fetch, QueuedCopy
from kvtransfer.device_pool import DevicePoolMemory
from kvtransfer.faults import FaultPlan
from kvtransfer.fetch import CopyOutcome, Drained, Failed, FetchAction, FetchMachine, Ready, SendRelease, StartCopy
from kvtransfer.handoff import HandoffStats, KvFinalData, RequestKey, SourceAddress, WorkerIdentity
from kvtransfer.peer import Peer
from kvtransfer.pool import KVPool
from kvtransfer.push_choice import KvPush, MeasuredHandoff
from kvtransfer.push_door import PushDoor
from kvtransfer.thread_priority import give_way
from kvtransfer.transport import LinkFactory, TransportError
from wire.errors import ErrorCode, SpliceError
from wire.v1 import kv_pb2

_log = structlog.get_logger(__name__)
_TICK_S = 0.05
_PART_S = 1.0
_COPY_NICE = 5
"""Copies give way to the engine that decodes beside them: it holds everybody up, a copy one request."""


class KvConsumer:
    """Pulls announced blocks into the local pool and says when a request is ready, failed, or quiet.

    Every fetch ends in `on_ready(key, final, stats)`; or in `on_failed(key, error, blamed worker)` at once and
    `on_drained(key)` once no copy into its blocks is outstanding; or, after `cancel`, in `on_drained` alone. Callbacks
    come on the loop's thread, in order.
    """

    def __init__(
        self,
        pool: KVPool,
        identity: WorkerIdentity,
        *,
        transports: Sequence[str],
        on_ready: Callable[[RequestKey, KvFinalData, HandoffStats], None],
        on_failed: Callable[[RequestKey, SpliceError, str | None], None],
        on_drained: Callable[[RequestKey], None],
        copy_threads: int = 2,
        faults: FaultPlan | None = None,
        factories: Mapping[str, LinkFactory] | None = None,
        push: KvPush = "off",
    ) -> None:
        """`transports` best first; `factories` are by default all that can fill `pool`. `push`: whether sources on this
        host that can are granted a request's blocks before they compute them; `on` wants a pool on a device."""
        if factories is None:
            factories = registry.links_into(pool)
        self._pool = pool
        self._identity = identity
        self._transports = registry.checked(transports, list(factories), registry.missing_for(pool))
        self._on_ready = on_ready
        self._on_failed = on_failed
        self._on_drained = on_drained
        self._faults = faults or FaultPlan()
        self._factories = factories
        self._copy_threads = copy_threads
        self._lock = threading.Lock()
        self._fetches: dict[RequestKey, Fetch] = {}
        self._queue = CopyQueue(pool.batch_blocks)
        self._door: PushDoor | None = None
        if push == "on" or (push == "auto" and isinstance(pool, DevicePoolMemory)):
            self._door = PushDoor(pool, self._pusher_gone, push)
        self._stats = ConsumerStats()
        self._peers: dict[SourceAddress, tuple[Peer, asyncio.Task[None]]] = {}
        self._parting: set[asyncio.Task[None]] = set()
        self._ticker: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._copiers: ThreadPoolExecutor | None = None

    @property
    def stats(self) -> ConsumerStats:
        with self._lock:
            return self._stats

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._copiers = ThreadPoolExecutor(
            self._copy_threads, thread_name_prefix="kv-copy", initializer=give_way, initargs=(_COPY_NICE,)
        )
        self._ticker = asyncio.create_task(self._tick())
        if self._door is not None:
            await self._door.start()

    async def close(self) -> None:
        """Cancels what is left; returns when no copy is outstanding and every callback was made."""
        if self._loop is None or self._copiers is None or self._ticker is None:
            return
        for key in list(self._fetches):
            self.cancel(key, "shutting down")
        copiers = asyncio.create_task(asyncio.to_thread(self._copiers.shutdown))
        await asyncio.wait((copiers,), timeout=_PART_S)  # whoever is about to decide on a release has decided
        await asyncio.sleep(0)  # releases decided above reach their channels first
        peers = [task for _, task in self._peers.values()]
        for peer, _ in self._peers.values():
            peer.part()
        if peers:
            await asyncio.wait(peers, timeout=_PART_S)  # a source that answers has heard every release by then
        tasks = [self._ticker, *peers, *self._parting]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await copiers
        if self._door is not None:
            await self._door.close()
            with self._lock:  # a source that still maps the pool keeps its memory from being freed, not us from ending
                for key, fetch in list(self._fetches.items()):
                    self._perform(key, fetch, fetch.machine.quiet())
        await asyncio.sleep(0)

    # --- the worker's engine thread ---

    def fetch(
        self,
        key: RequestKey,
        source: SourceAddress,
        dest_blocks: Sequence[int],
        skip_blocks: int,
        deadline_s: float,
        *,
        expect_tokens: int | None = None,
    ) -> None:
        """Block i of the request goes to `dest_blocks[i]`, the first `skip_blocks` excepted. Thread-safe.

        `deadline_s` is a duration from now. With `expect_tokens` a hand-off of any other length fails.
        """
        if any(not 0 <= block < self._pool.num_blocks for block in dest_blocks):
            raise SpliceError(ErrorCode.INTERNAL_ERROR, f"destination outside the pool of {self._pool.num_blocks}")
        machine = FetchMachine(
            key,
            dest_blocks=len(dest_blocks),
            skip_blocks=skip_blocks,
            block_tokens=self._pool.layout.block_tokens,
            num_layers=self._pool.layout.num_layers,
            deadline_s=time.monotonic() + deadline_s,
            expect_tokens=expect_tokens,
            max_outstanding=2 * self._copy_threads * self._pool.batch_blocks,
        )
        with self._lock:
            if key in self._fetches:
                raise SpliceError(ErrorCode.INTERNAL_ERROR, f"request {key} is being fetched already")
            self._fetches[key] = Fetch(machine, source, tuple(dest_blocks), skip_blocks)
        self._on_loop(self._attach, key)

    def cancel(self, key: RequestKey, reason: str) -> None:
        """No new copy starts; `on_drained` follows, at once if the key is unknown. Thread-safe."""
        with self._lock:
            fetch = self._fetches.get(key)
            if fetch is None:
                self._on_loop(self._on_drained, key)
            else:
                self._perform(key, fetch, fetch.machine.cancel(reason))

    # --- the loop ---

    def _attach(self, key: RequestKey) -> None:
        with self._lock:
            fetch = self._fetches.get(key)
        if fetch is not None:
            self._part(fetch.source)  # a copy thread that has just found its last transport broken may yet say so
        with self._lock:
            if fetch is None or not fetch.machine.is_live:
                return
            known = self._peers.get(fetch.source)
            if known is None:
                peer = Peer(fetch.source, self._identity, self._pool.layout, self._transports, self._factories)
                task = asyncio.get_running_loop().create_task(self._run_peer(peer))
                known = self._peers[fetch.source] = (peer, task)
            fetch.peer = known[0]
            subscribe = kv_pb2.KvSubscribe(request=key[0], attempt=key[1], skip_blocks=fetch.skip_blocks)
            fetch.peer.send(kv_pb2.KvConsumerMessage(subscribe=subscribe))
            self._grant(key, fetch)

    def _grant(self, key: RequestKey, fetch: Fetch) -> None:
        """Under the lock: lets a source that can write to the request's blocks, until it says that it does not."""
        if self._door is None or fetch.peer is None or not fetch.machine.is_live:
            return
        blocks = tuple(fetch.dest_blocks[fetch.skip_blocks :])
        fetch.wants_push = self._door.choose(fetch.peer, len(blocks))
        grant = self._door.grant(fetch.peer, key, fetch.skip_blocks, blocks) if fetch.wants_push else None
        if grant is not None:
            fetch.machine.push_granted()
            fetch.peer.send(grant)

    def _pusher_gone(self, peer: Peer) -> None:
        """Nothing of this source writes to our memory any more. On any thread."""
        with self._lock:
            for key, fetch in list(self._fetches.items()):
                if fetch.peer is peer:
                    self._perform(key, fetch, fetch.machine.quiet())

    async def _run_peer(self, peer: Peer) -> None:
        error = SpliceError(ErrorCode.CANCELLED, "shutting down")
        try:
            error = await peer.run(self._warm, self._received, self._renewable)
        except Exception as unexpected:  # a fault of ours must end these fetches, not strand them
            _log.exception("kv channel failed", source=peer.source.worker_id)
            error = SpliceError(ErrorCode.INTERNAL_ERROR, f"KV channel to {peer.source.worker_id}: {unexpected!r}")
        finally:
            self._lost(peer, error)

    def _warm(self, peer: Peer) -> None:
        if self._copiers is not None and peer.links is not None:
            self._copiers.submit(_open_quietly, peer)
        with self._lock:
            for key, fetch in self._fetches.items():
                if fetch.peer is peer:
                    self._grant(key, fetch)

    def _received(self, peer: Peer, message: kv_pb2.KvSourceMessage) -> None:
        body: kv_pb2.KvAnnounce | kv_pb2.KvHoldFailed | kv_pb2.KvPushQuiet
        match message.WhichOneof("body"):
            case "announce":
                body = message.announce
            case "quiet":
                body = message.quiet
            case _:
                body = message.failed
        key = (body.request, body.attempt)
        with self._lock:
            fetch = self._fetches.get(key)
            if fetch is None or fetch.peer is not peer:
                return  # late news of a fetch that has ended
            if isinstance(body, kv_pb2.KvAnnounce):
                blocks, final = announced(body)
                layers = (body.layer_begin, body.layer_end)
                actions = fetch.machine.announced(blocks, layers, final, time.monotonic())
            elif isinstance(body, kv_pb2.KvPushQuiet):
                actions = fetch.machine.quiet()
            else:
                known = {code.value for code in ErrorCode}
                code = ErrorCode(body.code) if body.code in known else ErrorCode.KV_TRANSFER_FAILED
                actions = fetch.machine.source_failed(code, body.message)
            self._perform(key, fetch, actions)

    def _renewable(self, peer: Peer) -> list[RequestKey]:
        with self._lock:
            return [key for key, fetch in self._fetches.items() if fetch.peer is peer and fetch.machine.is_live]

    def _lost(self, peer: Peer, error: SpliceError) -> None:
        with self._lock:
            if self._peers.get(peer.source, (None,))[0] is peer:
                del self._peers[peer.source]
            for key, fetch in list(self._fetches.items()):
                if fetch.peer is peer:
                    self._perform(key, fetch, fetch.machine.source_lost(error.code, error.message))
        if peer.links is not None:
            peer.links.close()  # ends copies under way; on a dead source this also lets go of its memory
        if self._door is not None:
            self._door.lost(peer)

    def _part(self, source: SourceAddress) -> None:
        """Gives up a channel with no transport left: the next fetch says Hello again and gets fresh offers.

        What broke the transports may have passed (a source that was frozen), the channel alone would not show it.
        """
        peer, task = self._peers.get(source, (None, None))
        if peer is None or task is None or peer.links is None or not peer.links.exhausted:
            return
        code, name = ErrorCode.KV_TRANSFER_FAILED, source.worker_id
        self._lost(peer, SpliceError(code, f"no transport to {name} is left; another request may find it well"))
        self._parting.add(task)
        task.add_done_callback(self._parting.discard)
        task.cancel()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            with self._lock:
                for key, fetch in list(self._fetches.items()):
                    self._perform(key, fetch, fetch.machine.tick(time.monotonic()))

    # --- copy threads ---

    def _copy_some(self, peer: Peer) -> None:
        """As many of the peer's waiting blocks as the pool takes together; another thread may have taken them all."""
        with self._lock:
            copies = self._queue.take(peer)
        live = [copy for copy in copies if copy.fetch.machine.is_live]
        ended = [copy for copy in copies if not copy.fetch.machine.is_live]
        self._report([(copy, CopyOutcome.BROKEN, "cancelled before it began") for copy in ended])
        if not live:
            return
        try:
            outcomes = self._copy_and_check(peer, live)
            results = [(copy, outcome, "") for copy, outcome in zip(live, outcomes, strict=True)]
        except TransportError as error:
            results = [(copy, CopyOutcome.BROKEN, str(error)) for copy in live]
        except Exception as unexpected:  # a copy that is never reported would keep its memory for ever
            _log.exception("kv copy failed", blocks=[copy.block().read for copy in live])
            results = [(copy, CopyOutcome.BROKEN, repr(unexpected)) for copy in live]
        self._report(results)
        if peer.links is not None and peer.links.exhausted:
            self._on_loop(self._part, peer.source)

    def _copy_and_check(self, peer: Peer, copies: Sequence[QueuedCopy]) -> list[CopyOutcome]:
        if peer.links is None:
            raise TransportError("announced before Hello")
        outcomes = copy_and_check(peer.links, [copy.block() for copy in copies], self._pool, self._faults)
        for copy, outcome in zip(copies, outcomes, strict=True):
            if outcome is CopyOutcome.DAMAGED:
                _log.warning("kv block damaged", request=copy.key, block=copy.start.index, source=peer.source.worker_id)
        return outcomes

    def _report(self, results: Sequence[tuple[QueuedCopy, CopyOutcome, str]]) -> None:
        damaged = sum(outcome is CopyOutcome.DAMAGED for _, outcome, _ in results)
        with self._lock:
            self._stats = replace(
                self._stats,
                copies_outstanding=self._stats.copies_outstanding - len(results),
                digest_mismatches=self._stats.digest_mismatches + damaged,
            )
            for copy, outcome, detail in results:
                machine = copy.fetch.machine
                actions = machine.copied(copy.start.index, outcome, detail, time.monotonic())
                self._perform(copy.key, copy.fetch, actions)

    # --- actions ---

    def _perform(self, key: RequestKey, fetch: Fetch, actions: list[FetchAction]) -> None:
        """Under the lock: what leaves here for the loop keeps the order in which it was decided."""
        for action in actions:
            match action:
                case StartCopy():
                    self._stats = replace(self._stats, copies_outstanding=self._stats.copies_outstanding + 1)
                    self._submit(key, fetch, action)
                case SendRelease(reason):
                    release = kv_pb2.KvRelease(request=key[0], attempt=key[1], reason=reason)
                    if fetch.peer is not None:
                        self._on_loop(fetch.peer.send, kv_pb2.KvConsumerMessage(release=release))
                case Failed(code, message, blame):
                    self._stats = replace(self._stats, failures=self._stats.failures + 1)
                    blamed = fetch.source.worker_id if blame else None
                    self._on_loop(self._on_failed, key, SpliceError(code, message), blamed)
                case Drained():
                    self._fetches.pop(key, None)
                    self._on_loop(self._on_drained, key)
                case Ready():
                    self._fetches.pop(key, None)
                    self._on_loop(self._on_ready, key, action.final, self._count(fetch, action))

    def _count(self, fetch: Fetch, ready: Ready) -> HandoffStats:
        links = fetch.peer.links if fetch.peer is not None else None
        stats = handoff_stats(links, ready, self._pool.layout.block_bytes)
        self._stats = self._stats.counting(stats)
        if self._door is not None and fetch.peer is not None and fetch.wants_push is not None and ready.kv_blocks:
            one = MeasuredHandoff(ready.final.computed_tokens, ready.exposed_s, ready.final.excess_s)
            self._door.ended(fetch.peer, fetch.wants_push, 2 * ready.blocks_pushed >= ready.kv_blocks, one)
        return stats

    def _submit(self, key: RequestKey, fetch: Fetch, copy: StartCopy) -> None:
        if self._copiers is None or fetch.peer is None:
            raise SpliceError(ErrorCode.INTERNAL_ERROR, "KvConsumer was not started")
        self._queue.add(fetch.peer, QueuedCopy(key, fetch, copy))
        self._copiers.submit(self._copy_some, fetch.peer)

    def _on_loop(self, call: Callable[..., object], *arguments: object) -> None:
        if self._loop is None:
            raise SpliceError(ErrorCode.INTERNAL_ERROR, "KvConsumer was not started")
        self._loop.call_soon_threadsafe(call, *arguments)


def _open_quietly(peer: Peer) -> None:
    """Opens the link ahead of the first block; what fails here is reported by the first copy that needs it."""
    try:
        if peer.links is not None:
            peer.links.warm()
    except TransportError as error:
        _log.warning("no kv transport opened", source=peer.source.worker_id, error=str(error))
