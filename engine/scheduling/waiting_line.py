"""The requests that wait to be admitted."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator

from engine.scheduling.request import Request


class WaitingLine:
    """Most senior first. Iterate over a copy to remove on the way."""

    def __init__(self) -> None:
        self._requests: list[Request] = []
        self.num_to_compute = 0
        """How many of them are to be computed here, and not elsewhere."""

    def add(self, request: Request) -> None:
        insort(self._requests, request, key=lambda each: each.seniority)
        self.num_to_compute += not request.is_computed_elsewhere

    def remove(self, request: Request) -> None:
        self._requests.remove(request)
        self.num_to_compute -= not request.is_computed_elsewhere

    @property
    def head(self) -> Request:
        """Raises IndexError where nobody waits."""
        return self._requests[0]

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def check(self) -> None:
        """Raises AssertionError for a wrong count."""
        if self.num_to_compute != sum(1 for each in self._requests if not each.is_computed_elsewhere):
            raise AssertionError(f"{self.num_to_compute} requests are counted to be computed here: {self._requests}")
