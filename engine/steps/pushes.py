"""Which rows of a step are stored in a peer's cache besides, and which of a request's blocks are whole there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from engine.scheduling.request import RequestKey, RequestKind
from engine.scheduling.schedule_plan import ScheduledRequest
from engine.steps.peer_blocks import PeerBlocks


class PushPort(Protocol):
    """Who knows of peers' caches."""

    def begin(self, key: RequestKey) -> PeerBlocks | None:
        """Where one launch may store the request's rows besides, until it was `launched`; None: nowhere."""

    def launched(self, keys: Sequence[RequestKey], event: int) -> None:
        """What `begin` gave out for `keys` is not written to any more once the device has passed `event`, which may be
        recorded anew after this."""


@dataclass(frozen=True, slots=True)
class Pushes:
    """Of an engine. Without a port no row leaves."""

    port: PushPort | None = None
    record: Callable[[], int] = int
    """See `PushingModel.record`."""

    @contextmanager
    def launch(self, scheduled: Sequence[ScheduledRequest]) -> Iterator[dict[RequestKey, PeerBlocks]]:
        """Around one launch: where the rows of which requests go besides.

        However it is left, what it may have launched is reported, once. Raises DeviceLost where nobody can say any more
        when that is done: it is not reported then, and peers wait for the end of this process.
        """
        peers: dict[RequestKey, PeerBlocks] = {}
        try:
            if self.port is not None:
                for part in scheduled:
                    if part.request.kind is RequestKind.PREFILL:
                        _begin(self.port, part, peers)
            yield peers
        finally:
            if self.port is not None and peers:
                self.port.launched(list(peers), self.record())


def charge(scheduled: Sequence[ScheduledRequest], excess_s: float) -> None:
    """Shares among prompts how much longer a step took than steps of its size should: storing in a peer's memory shows
    there, if anywhere."""
    rows = sum(part.num_new_tokens for part in scheduled)
    for part in scheduled:
        part.request.excess_s += excess_s * part.num_new_tokens / rows


def _begin(port: PushPort, part: ScheduledRequest, peers: dict[RequestKey, PeerBlocks]) -> None:
    request = part.request
    given = port.begin(request.key)
    if given is None:
        request.pushed_from = None
        return
    # What was announced may have been fetched and believed: it is not written again.
    peers[request.key] = given.from_block(request.num_announced_blocks)
    if request.pushed_from is None or request.num_computed_tokens < request.pushed_from:
        request.pushed_from = request.num_computed_tokens
