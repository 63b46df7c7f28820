"""Whether the event loop gets around: health is progress, not presence."""

from __future__ import annotations

import asyncio

PERIOD_S = 0.1
_STALLED_S = 5.0


class Pulse:
    """Counts beats of the loop it runs on and how late the last one came."""

    def __init__(self) -> None:
        self.beats = 0
        self.lag_s = 0.0
        self._last_beat_s: float | None = None

    async def run(self) -> None:
        """Beats until cancelled."""
        loop = asyncio.get_running_loop()
        self._last_beat_s = loop.time()
        while True:
            await asyncio.sleep(PERIOD_S)
            now_s = loop.time()
            self.lag_s = max(now_s - self._last_beat_s - PERIOD_S, 0.0)
            self._last_beat_s = now_s
            self.beats += 1

    def status(self) -> dict[str, object]:
        """`status` is "ok" while beats come."""
        last_s = self._last_beat_s
        age_s = asyncio.get_running_loop().time() - last_s if last_s is not None else 0.0
        return {
            "status": "ok" if last_s is not None and age_s < _STALLED_S else "stalled",
            "progress": self.beats,
            "lag_s": round(self.lag_s, 4),
        }
