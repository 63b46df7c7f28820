"""Which requests this worker has, from whom, and until when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from engine.scheduling.request import RequestKey
from worker.session import RouterSession


@dataclass(slots=True)
class Tracked:
    """One request on this worker; `received_s` and `deadline_s` are on this worker's monotonic clock."""

    key: RequestKey
    session: RouterSession
    received_s: float
    deadline_s: float


class RequestTable:
    """Every request between its arrival and its end; at most one attempt of each."""

    def __init__(self) -> None:
        self._by_key: dict[RequestKey, Tracked] = {}
        self._latest_attempt: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[Tracked]:
        return iter(tuple(self._by_key.values()))

    def get(self, key: RequestKey) -> Tracked | None:
        return self._by_key.get(key)

    def add(self, tracked: Tracked) -> Tracked | None:
        """Takes the request in. Returns the older attempt it replaced, which is out of the table: the caller ends it.

        Raises KeyError if this attempt, or a newer one, is already here: the message was late or repeated.
        """
        request, attempt = tracked.key
        latest = self._latest_attempt.get(request)
        if latest is not None and latest >= attempt:
            raise KeyError(tracked.key)
        replaced = self._by_key.pop((request, latest)) if latest is not None else None
        self._by_key[tracked.key] = tracked
        self._latest_attempt[request] = attempt
        return replaced

    def remove(self, key: RequestKey) -> Tracked | None:
        tracked = self._by_key.pop(key, None)
        if tracked is not None and self._latest_attempt.get(key[0]) == key[1]:
            del self._latest_attempt[key[0]]
        return tracked

    def expired(self, now_s: float) -> list[Tracked]:
        return [tracked for tracked in self._by_key.values() if now_s >= tracked.deadline_s]

    def of_session(self, session: RouterSession) -> list[Tracked]:
        return [tracked for tracked in self._by_key.values() if tracked.session is session]
