"""The consumer's one hand-off: what to copy, when to believe it, and when its memory is quiet again."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

from kvtransfer.handoff import DIGEST_BYTES, BlockRange, KvFinalData, RequestKey
from wire.errors import ErrorCode


class FetchState(Enum):
    AWAIT_PREFILL = "await_prefill"
    FETCHING = "fetching"
    READY = "ready"
    FAILED = "failed"


class CopyOutcome(Enum):
    """What became of one copy."""

    VERIFIED = "verified"
    STALE = "stale"
    """The block's generation was not the granted one after the copy."""
    DAMAGED = "damaged"
    """The bytes in the destination do not have the announced digest."""
    ABSENT = "absent"
    """A block that was to be pushed is not, or not whole, in its destination."""
    BROKEN = "broken"
    """No transport could copy it."""


@dataclass(frozen=True, slots=True)
class StartCopy:
    index: int
    """Block of the request; the shell knows its destination."""
    source_block: int
    generation: int
    digest: bytes
    in_place: bool = False
    """It was pushed: nothing is copied, the destination is compared with the digest."""
    tokens: int = 0
    """How many of the request's lie in it; the last block may have room left."""


@dataclass(frozen=True, slots=True)
class SendRelease:
    """Tell the source that no read will begin any more."""

    reason: str


@dataclass(frozen=True, slots=True)
class Ready:
    final: KvFinalData
    kv_blocks: int
    copy_s: float
    exposed_s: float
    blocks_refetched: int
    blocks_pushed: int = 0


@dataclass(frozen=True, slots=True)
class Failed:
    code: ErrorCode
    message: str
    source_is_to_blame: bool


@dataclass(frozen=True, slots=True)
class Drained:
    """No copy is outstanding, none will start, and nobody pushes: the destination may be reused."""


FetchAction = StartCopy | SendRelease | Ready | Failed | Drained


@dataclass(frozen=True, slots=True)
class _Granted:
    source_block: int
    generation: int
    digest: bytes
    pushed: bool
    tokens: int


class FetchMachine:
    """AWAIT_PREFILL → FETCHING → READY | FAILED, for one request.

    `Failed` is told at once; `Drained` follows when the last outstanding copy has been reported, in the same answer if
    there is none. A cancelled fetch ends in `Drained` alone. READY needs the final announcement and every block in
    [`skip_blocks`, blocks of its `num_tokens`) copied and verified. A stale or damaged block is copied once more, then
    the fetch fails. Announcements may repeat and come in any order.

    Once `push_granted`, the source may write to the destination until it says `quiet`, announces the final range, or
    is out of reach for good; `Drained` waits for that too. A block announced as pushed is compared in place, and pulled
    as any other if it is not there.
    """

    def __init__(
        self,
        key: RequestKey,
        *,
        dest_blocks: int,
        skip_blocks: int,
        block_tokens: int,
        num_layers: int,
        deadline_s: float,
        expect_tokens: int | None = None,
        max_outstanding: int = 4,
    ) -> None:
        """`dest_blocks` counts the request's blocks with a destination; `deadline_s` is absolute and monotonic."""
        self.key = key
        self.state = FetchState.AWAIT_PREFILL
        self.deadline_s = deadline_s
        self._dest_blocks = dest_blocks
        self._skip_blocks = skip_blocks
        self._block_tokens = block_tokens
        self._num_layers = num_layers
        self._expect_tokens = expect_tokens
        self._max_outstanding = max_outstanding
        self._granted: dict[int, _Granted] = {}
        self._waiting: deque[int] = deque()
        self._outstanding: set[int] = set()
        self._verified: set[int] = set()
        self._refetched: set[int] = set()
        self._pushing = False
        self._pushed: set[int] = set()
        self._pulled: set[int] = set()
        self._final: tuple[KvFinalData, int] | None = None
        self._final_at_s = 0.0
        self._busy_since_s = 0.0
        self._copy_s = 0.0

    @property
    def is_live(self) -> bool:
        return self.state in (FetchState.AWAIT_PREFILL, FetchState.FETCHING)

    @property
    def is_drained(self) -> bool:
        return not self.is_live and not self._outstanding and not self._pushing

    def push_granted(self) -> None:
        """The source was told that it may write to the destination."""
        self._pushing = self.is_live

    def quiet(self) -> list[FetchAction]:
        """Nothing of the source's writes to the destination any more; may be said again."""
        if not self._pushing:
            return []
        self._pushing = False
        return [Drained()] if self.is_drained else []

    def announced(
        self, blocks: BlockRange, layers: tuple[int, int], final: KvFinalData | None, now_s: float
    ) -> list[FetchAction]:
        if not self.is_live:
            return []
        wrong = self._wrong_with(blocks, layers, final)
        if wrong is not None:
            return self._fail(ErrorCode.KV_TRANSFER_FAILED, wrong, source_is_to_blame=True)
        self.state = FetchState.FETCHING
        columns = zip(blocks.block_ids, blocks.generations, blocks.digests, strict=True)
        for index, (block_id, generation, digest) in enumerate(columns, start=blocks.first_block):
            if index >= self._skip_blocks and index not in self._granted:
                pushed, tokens = blocks.pushed and self._pushing, blocks.tokens_of(index, self._block_tokens)
                self._granted[index] = _Granted(block_id, generation, digest, pushed, tokens)
                self._waiting.append(index)
        if final is not None and self._final is None:
            self._final = (final, -(-blocks.num_tokens // self._block_tokens))
            self._final_at_s = now_s
            self._pushing = False  # announced behind the event of the last write
        return self._advance(now_s)

    def copied(self, index: int, outcome: CopyOutcome, detail: str, now_s: float) -> list[FetchAction]:
        """A copy ended; `detail` says what happened if it is BROKEN."""
        self._outstanding.remove(index)
        if not self._outstanding:
            self._copy_s += now_s - self._busy_since_s
        if not self.is_live:
            return [Drained()] if self.is_drained else []
        if outcome is CopyOutcome.ABSENT and self._is_in_place(index):
            self._pulled.add(index)
            self._waiting.appendleft(index)
            return self._advance(now_s)
        if outcome is CopyOutcome.VERIFIED:
            self._verified.add(index)
            if self._is_in_place(index):
                self._pushed.add(index)
            return self._advance(now_s)
        if outcome is CopyOutcome.BROKEN:
            return self._fail(ErrorCode.KV_TRANSFER_FAILED, f"block {index}: {detail}", source_is_to_blame=True)
        if index not in self._refetched:
            self._refetched.add(index)
            self._waiting.appendleft(index)
            return self._advance(now_s)
        if outcome is CopyOutcome.DAMAGED:
            return self._fail(
                ErrorCode.KV_DIGEST_MISMATCH,
                f"block {index} twice arrived with bytes other than those the source sealed",
                source_is_to_blame=True,
            )
        return self._fail(
            ErrorCode.KV_TRANSFER_FAILED,
            f"block {index} was reused at the source before it was read (its lease ended too early)",
            source_is_to_blame=False,
        )

    def source_failed(self, code: ErrorCode, message: str) -> list[FetchAction]:
        """The source says that this request cannot be completed; its process is well."""
        return self._fail(code, message, source_is_to_blame=False) if self.is_live else []

    def source_lost(self, code: ErrorCode, message: str) -> list[FetchAction]:
        """The source cannot be reached or is not whom we believed."""
        return self._fail(code, message, source_is_to_blame=True) if self.is_live else []

    def cancel(self, reason: str) -> list[FetchAction]:
        return self._stop(reason) if self.is_live else []

    def tick(self, now_s: float) -> list[FetchAction]:
        if not self.is_live or now_s < self.deadline_s:
            return []
        missing = "its final announcement" if self._final is None else f"{self._missing()} blocks"
        return self._fail(
            ErrorCode.DEADLINE_EXCEEDED, f"KV hand-off ran out of time, waiting for {missing}", source_is_to_blame=False
        )

    def check(self) -> list[str]:
        """Invariants that do not hold; empty when all is well."""
        waiting = set(self._waiting)
        claims = {
            "a block waits twice": len(waiting) == len(self._waiting),
            "a block is in two states": not (waiting & self._outstanding or waiting & self._verified),
            "a verified block is being overwritten": not self._verified & self._outstanding,
            "a copy without a grant": (waiting | self._outstanding | self._verified) <= set(self._granted),
            "too many copies": len(self._outstanding) <= self._max_outstanding,
            "a held block is overwritten": all(index >= self._skip_blocks for index in self._granted),
            "a copy waits though none may start": self.is_live or not waiting,
            "ready while it may be written to": self.state is not FetchState.READY or not self._pushing,
            "ready with copies outstanding": self.state is not FetchState.READY or not self._outstanding,
        }
        return [claim for claim, holds in claims.items() if not holds]

    def _wrong_with(self, blocks: BlockRange, layers: tuple[int, int], final: KvFinalData | None) -> str | None:
        end = blocks.first_block + len(blocks.block_ids)
        if not len(blocks.block_ids) == len(blocks.generations) == len(blocks.digests):
            return "announcement with columns of different lengths"
        if end > self._dest_blocks:
            return f"blocks up to {end} announced, only {self._dest_blocks} are reserved"
        if layers != (0, self._num_layers):
            return f"layers {layers} announced, expected all {self._num_layers}"
        if any(len(digest) != DIGEST_BYTES for digest in blocks.digests):
            return f"announced digest is not {DIGEST_BYTES} bytes"
        columns = enumerate(zip(blocks.block_ids, blocks.generations, strict=True), start=blocks.first_block)
        for index, (block_id, generation) in columns:
            known = self._granted.get(index)
            if known is not None and (known.source_block, known.generation) != (block_id, generation):
                return f"block {index} announced twice with different contents"
        if final is None:
            return None
        if -(-blocks.num_tokens // self._block_tokens) > self._dest_blocks:
            return f"{blocks.num_tokens} tokens announced, only {self._dest_blocks} blocks are reserved"
        if self._expect_tokens is not None and blocks.num_tokens != self._expect_tokens:
            return f"{blocks.num_tokens} tokens announced, expected {self._expect_tokens}"
        return None

    def _is_in_place(self, index: int) -> bool:
        return self._granted[index].pushed and index not in self._pulled

    def _missing(self) -> int:
        if self._final is None:
            return 0
        return sum(index not in self._verified for index in range(self._skip_blocks, self._final[1]))

    def _advance(self, now_s: float) -> list[FetchAction]:
        if self._final is not None and not self._waiting and not self._outstanding and not self._missing():
            return self._ready(self._final[0], now_s)
        actions: list[FetchAction] = []
        while self._waiting and len(self._outstanding) < self._max_outstanding:
            if not self._outstanding:
                self._busy_since_s = now_s
            index = self._waiting.popleft()
            self._outstanding.add(index)
            grant = self._granted[index]
            in_place = self._is_in_place(index)
            what = (grant.source_block, grant.generation, grant.digest)
            actions.append(StartCopy(index, *what, in_place, grant.tokens))
        return actions

    def _ready(self, final: KvFinalData, now_s: float) -> list[FetchAction]:
        self.state = FetchState.READY
        exposed_s = now_s - self._final_at_s
        blocks, again, pushed = len(self._verified), len(self._refetched), len(self._pushed)
        ready = Ready(final, blocks, self._copy_s, exposed_s, again, pushed)
        return [ready, SendRelease("fetched")]

    def _fail(self, code: ErrorCode, message: str, *, source_is_to_blame: bool) -> list[FetchAction]:
        return [Failed(code, message, source_is_to_blame), *self._stop(message)]

    def _stop(self, reason: str) -> list[FetchAction]:
        self.state = FetchState.FAILED
        self._waiting.clear()
        release = SendRelease(reason)
        return [release, Drained()] if self.is_drained else [release]
