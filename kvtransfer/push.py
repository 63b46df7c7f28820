"""Pushes: blocks a consumer granted before they were computed, and when nobody writes to them any more."""

from __future__ import annotations

from dataclasses import dataclass

from kvtransfer.handoff import RequestKey


@dataclass(frozen=True, slots=True)
class PushGrant:
    """Block i of a request may be written to the consumer's block `blocks[i - first_block]`, from `first_block` on."""

    first_block: int
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PushTarget:
    """Where the kernel that writes a request's keys and values may store them besides, for one launch."""

    address: int
    """Of the consumer's block 0, mapped here."""
    grant: PushGrant

    def slot(self, position: int, block_tokens: int) -> int:
        """Of the token at `position`, in the consumer's pool; -1: it stays."""
        index, offset = divmod(position, block_tokens)
        at = index - self.grant.first_block
        if not 0 <= at < len(self.grant.blocks):
            return -1
        return self.grant.blocks[at] * block_tokens + offset


@dataclass(frozen=True, slots=True)
class SendQuiet:
    """Tell the consumer that nothing writes to what it granted for this request, nor ever will."""

    consumer: int
    key: RequestKey


@dataclass(slots=True)
class _Granted:
    consumer: int
    grant: PushGrant
    launches: int = 0
    ending: bool = False


class PushTable:
    """GRANTED → (ENDING while launches are under way) → QUIET, per request; each grant ends in one SendQuiet."""

    def __init__(self) -> None:
        self._granted: dict[RequestKey, _Granted] = {}

    def __len__(self) -> int:
        return len(self._granted)

    def grant(self, consumer: int, key: RequestKey, grant: PushGrant) -> list[SendQuiet]:
        """A second grant for a request is not taken: it is quiet from the start."""
        if key in self._granted:
            return [SendQuiet(consumer, key)] if self._granted[key].consumer != consumer else []
        self._granted[key] = _Granted(consumer, grant)
        return []

    def begin(self, key: RequestKey) -> PushGrant | None:
        """A launch that may write there; None if nothing was granted or it has ended."""
        granted = self._granted.get(key)
        if granted is None or granted.ending:
            return None
        granted.launches += 1
        return granted.grant

    def consumer_of(self, key: RequestKey) -> int | None:
        granted = self._granted.get(key)
        return granted.consumer if granted is not None else None

    def finish(self, key: RequestKey) -> list[SendQuiet]:
        """Closes one successful `begin`: the launch is done on the device, or was not made."""
        granted = self._granted[key]
        granted.launches -= 1
        return self._quiet(key, granted) if granted.ending else []

    def end(self, key: RequestKey) -> list[SendQuiet]:
        """The lease ended, for whatever reason; unknown keys change nothing."""
        granted = self._granted.get(key)
        if granted is None:
            return []
        granted.ending = True
        return self._quiet(key, granted)

    def consumer_lost(self, consumer: int) -> None:
        """Its grants end; there is nobody to tell."""
        for key in [key for key, granted in self._granted.items() if granted.consumer == consumer]:
            self.end(key)

    def check(self) -> list[str]:
        """Invariants that do not hold; empty when all is well."""
        broken = []
        for key, granted in self._granted.items():
            if granted.launches < 0:
                broken.append(f"{key}: more launches ended than began")
            if granted.ending and not granted.launches:
                broken.append(f"{key}: ended, quiet and still here")
        return broken

    def _quiet(self, key: RequestKey, granted: _Granted) -> list[SendQuiet]:
        if granted.launches:
            return []
        del self._granted[key]
        return [SendQuiet(granted.consumer, key)]
