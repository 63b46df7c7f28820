"""One prefill worker as a consumer sees it: Hello, one channel, its transports."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import cast

import grpc
import grpc.aio

from kvtransfer.control import CODE_METADATA, SESSION_METADATA
from kvtransfer.handoff import RequestKey, SourceAddress, WorkerIdentity
from kvtransfer.links import Links
from kvtransfer.transport import LinkFactory, PeerPool
from wire.convert import layout_to_proto
from wire.errors import ErrorCode, SpliceError
from wire.kv_layout import KVLayout
from wire.v1 import kv_pb2, kv_pb2_grpc

HELLO_TIMEOUT_S = 5.0
_RENEWALS_PER_TTL = 3
_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    # A source behind a broken network path says nothing, not even that it is gone.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)


class Peer:
    """Lives from the first fetch to the loss of its channel; the next fetch from the same source makes a new one."""

    def __init__(
        self,
        source: SourceAddress,
        identity: WorkerIdentity,
        layout: KVLayout,
        transports: Sequence[str],
        factories: Mapping[str, LinkFactory],
    ) -> None:
        self.source = source
        self.links: Links | None = None
        """Set once Hello was accepted; nothing is announced before."""
        self.takes_pushes = False
        """Whether the source said, with that, that it can store what it computes in our memory too."""
        self._identity = identity
        self._layout = layout
        self._transports = transports
        self._factories = factories
        self._outbox: asyncio.Queue[kv_pb2.KvConsumerMessage | None] = asyncio.Queue()

    def send(self, message: kv_pb2.KvConsumerMessage) -> None:
        """On the loop; kept until the channel is open."""
        self._outbox.put_nowait(message)

    def part(self) -> None:
        """Says no more once all that was sent has gone out; the source then ends the channel, and `run` returns."""
        self._outbox.put_nowait(None)

    async def run(
        self,
        on_open: Callable[[Peer], None],
        on_message: Callable[[Peer, kv_pb2.KvSourceMessage], None],
        renewable: Callable[[Peer], list[RequestKey]],
    ) -> SpliceError:
        """Until the channel ends; returns why it did."""
        try:
            async with grpc.aio.insecure_channel(self.source.endpoint, options=_OPTIONS) as channel:
                stub = kv_pb2_grpc.KvSourceStub(channel)
                welcome = await stub.Hello(self._hello(), timeout=HELLO_TIMEOUT_S)
                offers = [(offer.name, offer.address) for offer in welcome.offers]
                pool = PeerPool(
                    self._layout.layout_id, self.source.incarnation, welcome.num_blocks, self._layout.block_bytes
                )
                self.links = Links(self.source.worker_id, offers, pool, self._factories)
                self.takes_pushes = welcome.takes_pushes
                on_open(self)
                stream = stub.Channel(metadata=((SESSION_METADATA, welcome.session),))
                renew_s = welcome.lease_ttl_s / _RENEWALS_PER_TTL
                writers = [
                    asyncio.create_task(self._write(stream)),
                    asyncio.create_task(self._renew(renew_s, renewable)),
                ]
                try:
                    async for message in stream:
                        on_message(self, message)
                finally:
                    stream.cancel()
                    for writer in writers:
                        writer.cancel()
                    await asyncio.gather(*writers, return_exceptions=True)
        except grpc.aio.AioRpcError as error:
            return self._refused_or_lost(error)
        return SpliceError(ErrorCode.WORKER_LOST, f"{self.source.worker_id} ended the KV channel")

    async def _write(self, stream: grpc.aio.StreamStreamCall[kv_pb2.KvConsumerMessage, kv_pb2.KvSourceMessage]) -> None:
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the reading side reports the loss
            while (message := await self._outbox.get()) is not None:
                await stream.write(message)
            await stream.done_writing()

    async def _renew(self, every_s: float, renewable: Callable[[Peer], list[RequestKey]]) -> None:
        while True:
            await asyncio.sleep(every_s)
            keys = renewable(self)
            if keys:
                renew = kv_pb2.KvRenew(request=[key[0] for key in keys], attempt=[key[1] for key in keys])
                self.send(kv_pb2.KvConsumerMessage(renew=renew))

    def _hello(self) -> kv_pb2.KvHello:
        return kv_pb2.KvHello(
            consumer_worker=self._identity.worker_id,
            consumer_incarnation=self._identity.incarnation,
            source_incarnation=self.source.incarnation,
            compat_id=self._identity.compat_id,
            layout=layout_to_proto(self._layout),
            host_id=self._identity.host_id,
            transports=self._transports,
        )

    def _refused_or_lost(self, error: grpc.aio.AioRpcError) -> SpliceError:
        metadata = cast(Iterable[tuple[str, str]], error.trailing_metadata() or ())
        named = dict(metadata).get(CODE_METADATA)
        code = next((known for known in ErrorCode if known.value == named), ErrorCode.WORKER_LOST)
        return SpliceError(code, f"{self.source.worker_id} at {self.source.endpoint}: {error.details()}")
