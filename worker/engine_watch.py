"""Whether the engine's thread gets anywhere: hung and busy told apart. Pure."""

from __future__ import annotations

PATIENCE_S = 1.0
"""Longest time without a turn or work of any kind before a thread counts as hung, beside what its step may take."""
STEP_SLACK = 2.0
"""How many times its prediction a step may take without using a processor, as one that waits for a device does."""
_WORK_SHARE = 0.03
"""Share of one processor that counts as work; less is what the process needs to look after itself."""
_SHORTEST_LOOK_S, _LONGEST_LOOK_S = 0.05, 0.25
"""Between two looks. In less there is nothing to see; more counts for no more, because the process stood still or its
loop was held up."""


class EngineWatch:
    """Looked at every now and then, best ten times a second; keeps what it saw.

    A healthy engine's thread takes a turn at least every 50 ms when idle. A busy one takes one after each step,
    and until then uses the processor, on however loaded a machine. One that does neither waits for something that does
    not come: a lock, a pipe nobody reads, a device. An endless loop is not told from work here.
    """

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._turns = 0
        self._cpu_s = 0.0
        self._looked_s: float | None = None
        self._still_s = 0.0
        self._hung = False

    def look(self, now_s: float, turns: int, cpu_s: float, expected_step_s: float) -> bool:
        """True for hung.

        `turns` and `cpu_s` count since start: turns of the engine's thread, and processor seconds of all threads that
        may compute for it. `expected_step_s`: predicted length of the step under way.
        """
        passed_s = now_s - self._looked_s if self._looked_s is not None else _SHORTEST_LOOK_S
        if passed_s < _SHORTEST_LOOK_S:
            return self._hung
        moved = turns != self._turns or cpu_s - self._cpu_s >= _WORK_SHARE * passed_s
        self._still_s = 0.0 if moved else self._still_s + min(passed_s, _LONGEST_LOOK_S)
        self._looked_s, self._turns, self._cpu_s = now_s, turns, cpu_s
        self._hung = self._still_s > self._patience_s + STEP_SLACK * expected_step_s
        return self._hung
