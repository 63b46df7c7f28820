"""Stop strings in a stream of text whose pieces may break anywhere."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Feeds text through; withholds whatever could still become the beginning of a stop string.

    What `feed` and `flush` return, joined, is the text up to the first stop string that completes (with it when
    `include_stop`), whatever the pieces were. When several complete in the same character, the longest wins.
    """

    def __init__(self, stops: Sequence[str], *, include_stop: bool = False) -> None:
        self._stops = tuple(stops)
        self._include_stop = include_stop
        self._held = ""
        self.matched: str | None = None
        """The stop string found; once set, no more text comes out."""

    def feed(self, text: str) -> str:
        """Text that became certain."""
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        already_seen = len(self._held)
        self._held += text
        found = self._first_match(already_seen)
        if found is not None:
            start, self.matched = found
            out = self._held[: start + len(self.matched)] if self._include_stop else self._held[:start]
            self._held = ""
            return out
        keep = self._possible_beginning()
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out

    def flush(self) -> str:
        """The answer ended: what was withheld is plain text after all."""
        out, self._held = self._held, ""
        return out

    def _first_match(self, already_seen: int) -> tuple[int, str] | None:
        """(start, stop string) of the match that ends first, the longest of those ending together."""
        best: tuple[int, int, str] | None = None
        for stop in self._stops:
            start = self._held.find(stop, max(already_seen - len(stop) + 1, 0))
            if start >= 0 and (best is None or (start + len(stop), start) < best[:2]):
                best = (start + len(stop), start, stop)
        return (best[1], best[2]) if best is not None else None

    def _possible_beginning(self) -> int:
        """Length of the longest end of the held text that begins some stop string."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:size]):
                    longest = size
                    break
        return longest
