"""A step that a device computes while the host goes on."""

from __future__ import annotations

from dataclasses import dataclass

from engine.sampling.step_logits import PendingDraw
from engine.scheduling.schedule_plan import ScheduledRequest, SchedulePlan


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """What it computes, and where its tokens will be. Nothing it computes can be seen before `draw` is waited for."""

    plan: SchedulePlan
    drawing: list[ScheduledRequest]
    """Those whose next token is drawn, in the order of the draws."""
    draw: PendingDraw
    began_s: float
