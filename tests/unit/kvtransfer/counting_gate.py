"""What a source asks before it lets a block be read, for transports whose source takes part."""

from __future__ import annotations

import threading


class Gate:
    """Grants generation 1 of blocks below 8, and counts reads under way."""

    def __init__(self) -> None:
        self.reading = 0
        self.most = 0
        self._lock = threading.Lock()

    def begin_read(self, key: tuple[int, int], block: int, generation: int) -> bool:
        with self._lock:
            if block >= 8 or generation != 1:
                return False
            self.reading += 1
            self.most = max(self.most, self.reading)
            return True

    def end_read(self, key: tuple[int, int]) -> None:
        with self._lock:
            self.reading -= 1
