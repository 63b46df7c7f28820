"""The source's promises: which blocks are held for whom, and until when."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from kvtransfer.handoff import BlockRange, KvFinalData, RequestKey
from wire.errors import ErrorCode


@dataclass(frozen=True, slots=True)
class SendAnnounce:
    consumer: int
    key: RequestKey
    blocks: BlockRange
    final: KvFinalData | None


@dataclass(frozen=True, slots=True)
class SendFailed:
    consumer: int
    key: RequestKey
    code: ErrorCode
    message: str


@dataclass(frozen=True, slots=True)
class Release:
    """The lease ended: the owner may reuse the request's blocks, and need not compute what is still missing."""

    key: RequestKey
    reason: str


LeaseAction = SendAnnounce | SendFailed | Release


@dataclass(slots=True)
class _Hold:
    """Exists from the first announcement or subscription, whichever comes first."""

    expires_at_s: float
    consumer: int | None = None
    skip_blocks: int = 0
    announced: list[tuple[BlockRange, KvFinalData | None]] = field(default_factory=list)
    generations: dict[int, int] = field(default_factory=dict)
    reads: int = 0
    ending: str | None = None
    """Why it ended, while a read that began before still pins its blocks."""

    @property
    def next_block(self) -> int | None:
        if not self.announced:
            return None
        last = self.announced[-1][0]
        return last.first_block + len(last.block_ids)


@dataclass(frozen=True, slots=True)
class _Ended:
    """Remembered for one TTL, so that a late message about the key gets an answer instead of silence."""

    code: ErrorCode
    reason: str
    forget_at_s: float


class LeaseTable:
    """HELD → (ENDING while reads are pinned) → RELEASED, per request, under a TTL that the consumer renews.

    A subscription may come before the first announcement and an announcement before any subscription; either alone
    lives one TTL. Every hold ends in exactly one `Release`; an announcement for a key that has ended is answered with
    another. Messages repeated, late, or about unknown keys change nothing else. Expiry needs only `tick`.
    """

    def __init__(self, ttl_s: float) -> None:
        self.ttl_s = ttl_s
        self.expired_total = 0
        self._holds: dict[RequestKey, _Hold] = {}
        self._ended: dict[RequestKey, _Ended] = {}

    def __len__(self) -> int:
        return len(self._holds)

    def announce(
        self, key: RequestKey, blocks: BlockRange, final: KvFinalData | None, now_s: float
    ) -> list[LeaseAction]:
        """Blocks become readable. A range already announced is ignored."""
        hold = self._holds.get(key)
        if hold is None and key in self._ended:
            return [Release(key, self._ended[key].reason)]
        if hold is None:
            hold = self._holds[key] = _Hold(now_s + self.ttl_s)
        if hold.ending is not None:
            return []  # the release comes with the end of the last read
        reached = hold.next_block
        if reached is not None:
            blocks = blocks.from_block(reached)
        already_final = bool(hold.announced) and hold.announced[-1][1] is not None
        if already_final or (not blocks.block_ids and final is None):
            return []
        hold.announced.append((blocks, final))
        hold.generations.update(zip(blocks.block_ids, blocks.generations, strict=True))
        if hold.consumer is None:
            return []
        return _unsent(hold.consumer, key, hold.skip_blocks, [(blocks, final)])

    def subscribe(self, consumer: int, key: RequestKey, skip_blocks: int, now_s: float) -> list[LeaseAction]:
        """`consumer` reads this request from now on; it is told all that was announced before."""
        ended = self._ended.get(key)
        if ended is not None:
            return [SendFailed(consumer, key, ended.code, ended.reason)]
        hold = self._holds.get(key)
        if hold is None:
            hold = self._holds[key] = _Hold(now_s + self.ttl_s)
        if hold.consumer == consumer:
            return []
        if hold.consumer is not None or hold.ending is not None:
            return [SendFailed(consumer, key, ErrorCode.KV_TRANSFER_FAILED, "held for another consumer")]
        hold.consumer = consumer
        hold.skip_blocks = skip_blocks
        hold.expires_at_s = now_s + self.ttl_s
        return _unsent(consumer, key, skip_blocks, hold.announced)

    def is_held_by(self, consumer: int, key: RequestKey) -> bool:
        """Whether the consumer subscribed to it, and it has not ended."""
        hold = self._holds.get(key)
        return hold is not None and hold.consumer == consumer and hold.ending is None

    def renew(self, consumer: int, keys: Iterable[RequestKey], now_s: float) -> None:
        for key in keys:
            hold = self._holds.get(key)
            if hold is not None and hold.consumer == consumer and hold.ending is None:
                hold.expires_at_s = now_s + self.ttl_s

    def release(self, consumer: int, key: RequestKey, reason: str, now_s: float) -> list[LeaseAction]:
        """The consumer wants no more: fetched, failed or cancelled."""
        hold = self._holds.get(key)
        if hold is None or hold.consumer != consumer:
            return []
        return self._end(key, ErrorCode.KV_TRANSFER_FAILED, reason, now_s)

    def fail(self, key: RequestKey, code: ErrorCode, message: str, now_s: float) -> list[LeaseAction]:
        """Prefill cannot complete the request. A consumer that subscribes later is told too."""
        hold = self._holds.get(key)
        if hold is None:
            self._ended.setdefault(key, _Ended(code, message, now_s + self.ttl_s))
            return []
        actions: list[LeaseAction] = []
        if hold.consumer is not None and hold.ending is None:
            actions.append(SendFailed(hold.consumer, key, code, message))
        return actions + self._end(key, code, message, now_s)

    def consumer_lost(self, consumer: int, now_s: float) -> list[LeaseAction]:
        """The consumer's channel ended: nobody will read what it had subscribed to."""
        lost = [key for key, hold in self._holds.items() if hold.consumer == consumer]
        actions: list[LeaseAction] = []
        for key in lost:
            actions += self._end(key, ErrorCode.KV_TRANSFER_FAILED, "consumer lost", now_s)
        return actions

    def tick(self, now_s: float) -> list[LeaseAction]:
        """Ends what was not renewed in time."""
        actions: list[LeaseAction] = []
        for key in [key for key, hold in self._holds.items() if hold.ending is None and hold.expires_at_s <= now_s]:
            self.expired_total += 1
            consumer = self._holds[key].consumer
            if consumer is not None:
                actions.append(SendFailed(consumer, key, ErrorCode.KV_TRANSFER_FAILED, "lease expired"))
            actions += self._end(key, ErrorCode.KV_TRANSFER_FAILED, "lease expired", now_s)
        forgotten = [key for key, ended in self._ended.items() if ended.forget_at_s <= now_s and key not in self._holds]
        for key in forgotten:
            del self._ended[key]
        return actions

    def begin_read(self, key: RequestKey, block: int, generation: int) -> bool:
        """Pins the request's blocks while one of them is sent; False if this was not granted or has ended."""
        hold = self._holds.get(key)
        if hold is None or hold.ending is not None or hold.generations.get(block) != generation:
            return False
        hold.reads += 1
        return True

    def end_read(self, key: RequestKey) -> list[LeaseAction]:
        """Closes one successful `begin_read`; an ended hold is released with its last read."""
        hold = self._holds[key]
        hold.reads -= 1
        if hold.ending is None or hold.reads:
            return []
        del self._holds[key]
        return [Release(key, hold.ending)]

    def check(self) -> list[str]:
        """Invariants that do not hold; empty when all is well."""
        broken = []
        for key, hold in self._holds.items():
            named = {block for blocks, _ in hold.announced for block in blocks.block_ids}
            claims = {
                "more reads ended than began": hold.reads >= 0,
                "ended, unread and still here": hold.ending is None or hold.reads > 0,
                "held and ended at once": (key in self._ended) <= (hold.ending is not None),
                "announced and readable blocks differ": named == set(hold.generations),
                "announced beyond its final range": all(final is None for _, final in hold.announced[:-1]),
            }
            broken += [f"{key}: {claim}" for claim, holds in claims.items() if not holds]
        return broken

    def _end(self, key: RequestKey, code: ErrorCode, reason: str, now_s: float) -> list[LeaseAction]:
        hold = self._holds[key]
        if hold.ending is not None:
            return []
        self._ended[key] = _Ended(code, reason, now_s + self.ttl_s)
        if hold.reads:
            hold.ending = reason
            return []
        del self._holds[key]
        return [Release(key, reason)]


def _unsent(
    consumer: int, key: RequestKey, skip_blocks: int, announced: Iterable[tuple[BlockRange, KvFinalData | None]]
) -> list[LeaseAction]:
    ranges = ((blocks.from_block(skip_blocks), final) for blocks, final in announced)
    return [
        SendAnnounce(consumer, key, blocks, final) for blocks, final in ranges if blocks.block_ids or final is not None
    ]
