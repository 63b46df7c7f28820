"""One session with one worker: submits go out over its gRPC stream, token frames and heartbeats come back.

They come over the worker's token stream where it can be reached, and over the gRPC stream otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import grpc.aio

from router.events import WorkerKey
from router.policy import WorkerLoad
from router.token_stream import TokenStream
from wire.errors import ErrorCode, SpliceError
from wire.v1 import worker_pb2 as pb
from wire.v1 import worker_pb2_grpc as rpc
from wire.worker_record import WorkerRecord

log = logging.getLogger(__name__)

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", 64 * 2**20),
    ("grpc.max_send_message_length", 64 * 2**20),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # This class decides when to try again; gRPC's own pauses (up to two minutes) must not come on top.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
)
_FIRST_BACKOFF_S = 0.05
_LAST_BACKOFF_S = 2.0
_LAST_WORDS_S = 1.0
"""How long the rest of a token stream is waited for once its session has ended."""
_STEP_SLACK = 20.0
"""How many times its prediction a step may take, on a machine that does much else."""


@dataclass(frozen=True, slots=True)
class SessionTiming:
    """Durations in seconds."""

    connect_deadline_s: float = 5.0
    join_deadline_s: float = 1.0
    """How long a token stream is waited for before the gRPC stream does for both directions."""
    heartbeat_timeout_s: float = 3.0
    """Longest silence before the worker counts as lost."""
    stall_timeout_s: float = 10.0
    """Longest time busy without a finished engine step before the worker counts as hung, unless its step is predicted
    to take long."""


class SessionListener(Protocol):
    """Whoever owns the requests that travel over the sessions."""

    def on_message(self, session: WorkerSession, message: pb.WorkerMessage) -> None: ...
    def on_connected(self, session: WorkerSession) -> None: ...
    def on_lost(self, session: WorkerSession, reason: str) -> None: ...


class WorkerSession:
    """Keeps one `Worker.Session` stream open until `close`, connecting again with growing pauses after a loss.

    A loss is reported once per established stream: everything sent over it is gone. Messages to a worker wait in a
    bounded queue; a worker that stops reading is treated as lost rather than buffered for.
    """

    def __init__(
        self,
        record: WorkerRecord,
        router_id: str,
        router_incarnation: int,
        listener: SessionListener,
        timing: SessionTiming,
        *,
        queue_size: int = 4096,
    ) -> None:
        self.record = record
        self.key: WorkerKey = (record.worker_id, record.incarnation)
        self.connected = False
        self.heartbeat = pb.Heartbeat(free_blocks=record.num_blocks)
        self.sent_requests = 0
        """Requests of this router now on this worker."""
        self.sent_prefill_tokens = 0
        """Prompt tokens this router sent and has seen no token for yet."""
        self._hello = pb.RouterHello(
            router_id=router_id, router_incarnation=router_incarnation, worker_incarnation=record.incarnation
        )
        self._listener = listener
        self._timing = timing
        self._outgoing: asyncio.Queue[pb.RouterMessage] = asyncio.Queue(queue_size)
        self._channel = grpc.aio.insecure_channel(record.endpoint, options=CHANNEL_OPTIONS)
        self._stub: Any = rpc.WorkerStub(self._channel)
        self._call: Any = None
        self._tokens: TokenStream | None = None
        self._task: asyncio.Task[None] | None = None
        self._silent_s = 0.0
        self._stuck_s = 0.0
        self._stuck_at: int | None = None
        """The progress of a worker given up because it made none."""
        self._gets_somewhere = asyncio.Event()
        """Seen since the stream began: a worker that hung is used again once it goes on."""
        self._abort_reason = ""

    # What the rest of the router uses --------------------------------------------------------------------------------

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"session {self.record.worker_id}")

    async def close(self) -> None:
        """Ends the stream, which cancels at the worker whatever came over it."""
        self._abort("it is needed no more")
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._channel.close(None)

    def send(self, message: pb.RouterMessage) -> bool:
        """Queues a message; False when there is no stream to take it."""
        if not self.connected:
            return False
        try:
            self._outgoing.put_nowait(message)
        except asyncio.QueueFull:
            self._abort("it stopped reading its messages")
            return False
        return True

    @property
    def load(self) -> WorkerLoad:
        """The last heartbeat, never less than what this router itself has sent."""
        beat = self.heartbeat
        return WorkerLoad(
            record=self.record,
            running=max(beat.running, self.sent_requests - beat.waiting),
            waiting=beat.waiting,
            free_blocks=beat.free_blocks,
            queued_prefill_tokens=max(beat.queued_prefill_tokens, self.sent_prefill_tokens),
            draining=beat.draining,
        )

    async def get_model_card(self) -> pb.ModelCardReply:
        """Raises grpc.aio.AioRpcError when the worker does not answer in time."""
        reply: pb.ModelCardReply = await self._stub.GetModelCard(
            pb.GetModelCardRequest(), timeout=self._timing.connect_deadline_s
        )
        return reply

    # The stream -------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        backoff_s = _FIRST_BACKOFF_S
        while True:
            established = False
            try:
                established = await self._converse()
                reason = self._abort_reason or "the stream ended"
            except grpc.aio.AioRpcError as error:
                established = self.connected
                reason = self._abort_reason or f"{error.code().name}: {error.details()}"
            except SpliceError as error:
                established = self.connected
                reason = str(error)
            except Exception as error:  # whatever a worker sends, the next stream must be tried
                log.exception("session to %s failed", self.record.worker_id)
                established = self.connected
                reason = f"its messages could not be handled ({type(error).__name__})"
            finally:
                self._disconnect()
            if established:
                backoff_s = _FIRST_BACKOFF_S
                log.warning("worker %s lost: %s", self.record.worker_id, reason)
                self._listener.on_lost(self, reason)
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, _LAST_BACKOFF_S)

    async def _converse(self) -> bool:
        """One stream from hello to its end; True when it got as far as a welcome."""
        self._abort_reason = ""
        self._silent_s = self._stuck_s = 0.0
        self._gets_somewhere.clear()
        self._outgoing = asyncio.Queue(self._outgoing.maxsize)
        self._call = call = self._stub.Session()
        side_tasks = [asyncio.create_task(self._watch(), name=f"watch {self.record.worker_id}")]
        try:
            await call.write(pb.RouterMessage(hello=self._hello))
            messages: AsyncIterator[pb.WorkerMessage] = aiter(call)
            async for message in messages:
                if message.HasField("welcome") and len(side_tasks) == 1:
                    self._silent_s = 0.0
                    self._check_sender(message)
                    talk = self._talk(call, message.welcome)
                    side_tasks.append(asyncio.create_task(talk, name=f"write {self.record.worker_id}"))
                else:
                    self._take(message)
            await self._hear_out()
        except grpc.aio.AioRpcError:
            await self._hear_out()
            raise
        except asyncio.CancelledError:
            # grpc.aio reports its own cancelled call this way; only a cancelled task may end the loop.
            if asyncio.current_task() is not None and asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise
        finally:
            call.cancel()
            for task in side_tasks:
                task.cancel()
            await asyncio.gather(*side_tasks, return_exceptions=True)
        return self.connected

    def _take(self, message: pb.WorkerMessage) -> None:
        """Whichever stream it came over."""
        self._silent_s = 0.0
        self._check_sender(message)
        if message.HasField("heartbeat"):
            self._note_progress(message.heartbeat)
        elif not message.HasField("welcome"):
            self._listener.on_message(self, message)

    async def _talk(self, call: Any, welcome: pb.WorkerWelcome) -> None:
        """Nothing is said to an engine that hangs, nor before it is settled how answers come: see WorkerWelcome."""
        await self._join(welcome)
        await self._gets_somewhere.wait()
        self.connected = True
        self._listener.on_connected(self)
        await self._write(call)

    async def _hear_out(self) -> None:
        """A worker that leaves sends its last tokens before it ends the session; the two streams may race."""
        if self._tokens is not None and not self._abort_reason:
            await self._tokens.hear_out(_LAST_WORDS_S)

    async def _join(self, welcome: pb.WorkerWelcome) -> None:
        if not welcome.token_port:
            return
        host = self.record.endpoint.rpartition(":")[0].strip("[]")
        try:
            self._tokens = await TokenStream.join(
                host,
                welcome.token_port,
                welcome.token_ticket,
                on_message=lambda raw: self._take(pb.WorkerMessage.FromString(raw)),
                on_end=self._on_tokens_end,
                timeout_s=self._timing.join_deadline_s,
            )
        except Exception as error:  # slower, but nothing is amiss with the session
            where, reason = f"{host}:{welcome.token_port}", str(error) or type(error).__name__
            log.warning("no token stream from %s at %s: %s", self.record.worker_id, where, reason)

    def _on_tokens_end(self, error: Exception | None) -> None:
        if error is None:
            self._abort("its token stream ended")
        elif isinstance(error, SpliceError):
            self._abort(str(error))
        else:
            log.error("session to %s failed", self.record.worker_id, exc_info=error)
            self._abort(f"its messages could not be handled ({type(error).__name__})")

    async def _write(self, call: Any) -> None:
        try:
            while True:
                await call.write(await self._outgoing.get())
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            self._abort("its stream takes no more messages")

    async def _watch(self) -> None:
        """Ends a stream that went silent, or whose worker is busy without getting anywhere.

        Silence is counted in rounds of this loop, not by the clock: while the router itself is held up, messages wait
        unread, and no worker must count as lost for that.
        """
        timing = self._timing
        pause_s = min(timing.heartbeat_timeout_s, timing.stall_timeout_s) / 8
        while True:
            await asyncio.sleep(pause_s)
            self._silent_s += pause_s
            self._stuck_s += pause_s
            allowed_s = timing.heartbeat_timeout_s if self.connected else timing.connect_deadline_s
            if self._silent_s > allowed_s:
                self._abort(f"no message for {allowed_s:g} s")
            elif self.connected and self._stuck_s > max(
                timing.stall_timeout_s, _STEP_SLACK * self.heartbeat.expected_step_s
            ):
                self._stuck_at = self.heartbeat.progress
                self._abort(f"busy without finishing a step for {self._stuck_s:.0f} s")

    def _note_progress(self, beat: pb.Heartbeat) -> None:
        if not beat.busy or beat.progress != self.heartbeat.progress:
            self._stuck_s = 0.0
        self.heartbeat = beat
        if beat.hung:
            if self.connected:
                self._abort("its engine stands still")
        elif beat.progress != self._stuck_at:
            self._stuck_at = None
            self._gets_somewhere.set()

    def _check_sender(self, message: pb.WorkerMessage) -> None:
        if message.incarnation != self.record.incarnation:
            raise SpliceError(
                ErrorCode.INCARNATION_MISMATCH,
                f"{self.record.endpoint} answers as incarnation {message.incarnation:x}, "
                f"expected {self.record.incarnation:x}: the address was reused",
            )

    def _abort(self, reason: str) -> None:
        if not self._abort_reason:
            self._abort_reason = reason
        if self._tokens is not None:
            self._tokens.close()
        if self._call is not None:
            self._call.cancel()

    def _disconnect(self) -> None:
        self.connected = False
        self._call = None
        if self._tokens is not None:
            self._tokens.close()
            self._tokens = None
        self.sent_requests = 0
        self.sent_prefill_tokens = 0
        self.heartbeat = pb.Heartbeat(free_blocks=self.record.num_blocks)
