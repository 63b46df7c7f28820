"""Named faults that a test, or a worker started for one, can ask for. Nothing fires that was not asked for."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterable

from wire.errors import ErrorCode, SpliceError

FLIP_BYTE = "kv.flip_byte"
"""One bit of a copied block is flipped in the destination, before its digest is checked."""
FLIP_BYTE_UNCHECKED = "kv.flip_byte_unchecked"
"""The same, and the digest is not checked: what would happen without one."""
STALL = "kv.stall"
"""A copy waits, outstanding, before its first byte moves."""
DROP_FINAL = "kv.drop_final"
"""The source does not send a request's final announcement."""
DEVICE_LOST = "engine.device_lost"
"""The device of a worker's engine fails in a step, for good: what an illegal access does."""
_FLAG = re.compile(r"([^@=]+)(?:@(\d+))?(?:=(\d+))?")
POINTS = (FLIP_BYTE, FLIP_BYTE_UNCHECKED, STALL, DROP_FINAL, DEVICE_LOST)


class FaultPlan:
    """Which points fire, and how often; counts what fired. Thread-safe.

    `FaultPlan({"kv.flip_byte": 1})` fires on the first opportunity only; with `passed={"kv.flip_byte": 2}` on the
    third. A stall ends after `stall_s` or at `end_stalls()`.
    """

    def __init__(
        self, times: dict[str, int] | None = None, *, passed: dict[str, int] | None = None, stall_s: float = 5.0
    ) -> None:
        self._left = dict(times or {})
        self._passed = dict(passed or {})
        for point in (*self._left, *self._passed):
            if point not in POINTS:
                raise SpliceError(
                    ErrorCode.BAD_SETTING, f"no fault point {point!r}; known: {', '.join(POINTS)}", param="fault"
                )
        self.hits: Counter[str] = Counter()
        self._stall_s = stall_s
        self._stalls_over = threading.Event()
        self._lock = threading.Lock()

    @classmethod
    def parse(cls, flags: Iterable[str]) -> FaultPlan:
        """From `NAME[@PASSED][=TIMES]`, once and at the first opportunity unless said otherwise; raises
        SpliceError(BAD_SETTING)."""
        times: dict[str, int] = {}
        passed: dict[str, int] = {}
        for flag in flags:
            found = _FLAG.fullmatch(flag)
            if found is None:
                raise SpliceError(ErrorCode.BAD_SETTING, f"{flag!r}: expected NAME[@PASSED][=TIMES]", param="fault")
            name, before, count = found.groups()
            times[name], passed[name] = int(count or 1), int(before or 0)
        return cls(times, passed=passed)

    def names(self, point: str) -> bool:
        """Whether `point` was asked for."""
        return point in self._left

    def fires(self, point: str) -> bool:
        """Whether `point` fires this time; counted if so."""
        with self._lock:
            if self._left.get(point, 0) <= 0:
                return False
            if self._passed.get(point, 0) > 0:
                self._passed[point] -= 1
                return False
            self._left[point] -= 1
            self.hits[point] += 1
            return True

    def stall(self) -> None:
        """Waits if the stall fires."""
        if self.fires(STALL):
            self._stalls_over.wait(self._stall_s)

    def end_stalls(self) -> None:
        self._stalls_over.set()


def flip_bit(block: memoryview, layer_bytes: int, item_bytes: int) -> None:
    """Flips the highest exponent bit of V[last layer, head 0, token 0, dimension 0].

    Values near zero become about 2^128 times larger, and the final norm then drives every logit to zero: damage that
    cannot pass unnoticed, without a NaN.
    """
    last_layer_v = len(block) - layer_bytes // 2
    block[last_layer_v + item_bytes - 1] ^= 0x40
