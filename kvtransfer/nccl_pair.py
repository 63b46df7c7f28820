"""Two ranks, a source and a consumer, and the socket that shows whether the other one lives.

NCCL waits for a peer for ever. Every wait here ends: with the work, with NCCL's own report of an error, with the end of
the socket, which the kernel closes when the peer's process dies, or with a deadline. All but the first end the
communicator (`ncclCommAbort`, which stops what runs on our device) and the pair with it.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Sequence

import structlog

from kvtransfer.device_lane import DeviceLane
from kvtransfer.device_runtime import DeviceRuntime
from kvtransfer.nccl_library import Nccl, NcclError
from kvtransfer.transport import READ_TIMEOUT_S, TransportError

_log = structlog.get_logger(__name__)
SOURCE, CONSUMER = 0, 1
"""Ranks."""
JOIN_TIMEOUT_S = 10.0
"""Topology, threads and buffers take NCCL seconds; a peer that cannot be reached takes it for ever."""
_SPIN_S = 50e-6
_SLEEP_S = 50e-6


class NcclPair:
    """Used by one thread at a time; from any other, the socket is shut down to end it."""

    def __init__(self, runtime: DeviceRuntime, nccl: Nccl, unique_id: bytes, rank: int, peer: socket.socket) -> None:
        """Returns when both have joined; raises TransportError, and nothing is left then."""
        self._nccl = nccl
        self._rank = rank
        self._peer = peer
        runtime.enter()
        try:
            self._communicator: int | None = nccl.join(unique_id, rank)
        except NcclError as error:
            raise TransportError(f"NCCL cannot begin: {error}") from error
        try:
            self._until(self._is_settled, time.monotonic() + JOIN_TIMEOUT_S)
        except TransportError:
            self.abort()
            raise

    def send(self, lane: DeviceLane, spans: Sequence[int], nbytes: int) -> None:
        """Returns when the device has read them; raises TransportError, and nothing reads them any more then."""
        self._move(self._nccl.send, CONSUMER, lane, spans, nbytes)

    def receive(self, lane: DeviceLane, spans: Sequence[int], nbytes: int) -> None:
        """Returns when the bytes are there; raises TransportError, and nothing writes there any more then."""
        self._move(self._nccl.receive, SOURCE, lane, spans, nbytes)

    def abort(self) -> None:
        """Ends all that runs, without the peer. It may take long, and is waited for: until it returns, the device may
        still write to what was to be received."""
        communicator, self._communicator = self._communicator, None
        if communicator is None:
            return
        slow = threading.Timer(READ_TIMEOUT_S, _log.warning, ("kv nccl pair takes long to abort",))
        slow.daemon = True
        slow.start()
        try:
            self._nccl.abort(communicator)
        except NcclError as error:
            _log.error("kv nccl pair cannot be aborted", error=str(error))
        finally:
            slow.cancel()

    def _move(
        self,
        launch: Callable[[int, int, Sequence[int], int, int], None],
        to: int,
        lane: DeviceLane,
        spans: Sequence[int],
        nbytes: int,
    ) -> None:
        if self._communicator is None:
            raise TransportError("the pair has ended")
        deadline_s = time.monotonic() + READ_TIMEOUT_S
        try:
            try:
                launch(self._communicator, to, spans, nbytes, lane.stream)
            except NcclError as error:
                raise TransportError(str(error)) from error
            self._until(self._is_settled, deadline_s)  # only then is it on the stream, for the event to be behind
            lane.launched()
            self._until(lambda: self._is_settled() and lane.is_done(), deadline_s)
        except BaseException:
            self.abort()
            lane.launched()
            lane.finish()
            raise

    def _is_settled(self) -> bool:
        if self._communicator is None:
            raise TransportError("the pair has ended")
        try:
            return self._nccl.is_settled(self._communicator)
        except NcclError as error:
            raise TransportError(str(error)) from error

    def _until(self, is_over: Callable[[], bool], deadline_s: float) -> None:
        began_s = time.monotonic()
        while not is_over():
            now_s = time.monotonic()
            if now_s > deadline_s:
                raise TransportError("NCCL waits for a peer that does not answer")
            if now_s - began_s > _SPIN_S:
                if self._peer_has_ended():
                    raise TransportError("the peer ended the connection")
                time.sleep(_SLEEP_S)

    def _peer_has_ended(self) -> bool:
        """Also where it left words that nobody has read yet, or where the socket was hung up on here."""
        ends = select.poll()
        ends.register(self._peer, select.POLLRDHUP)
        return bool(ends.poll(0))
