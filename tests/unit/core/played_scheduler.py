"""A scheduler whose steps are taken for granted: every token is computed and drawn, and nothing is calculated."""

from __future__ import annotations

from collections.abc import Callable

from engine.blocks.block_pool import BlockPool, ListGenerations
from engine.config import EngineConfig
from engine.scheduling.request import Request, RequestKey, RequestKind
from engine.scheduling.schedule_plan import SchedulePlan
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.step_cost import StepCost
from engine.scheduling.stopping import finish_reason
from wire.sampling import FinishReason, SamplingParams

VOCAB = 1000


def request_of(
    key: RequestKey, num_tokens: int, max_tokens: int, kind: RequestKind = RequestKind.GENERATE, **rest: int
) -> Request:
    """A request whose prompt is its own alone, but for the first half of it, which many have."""
    half = num_tokens // 2
    tokens = [*range(half), *((key[0] * 31 + 7 * index) % VOCAB for index in range(num_tokens - half))]
    return Request(key, tokens, num_tokens, SamplingParams(max_tokens=max_tokens), kind=kind, **rest)


class PlayedScheduler:
    """Runs the decisions of a scheduler; `done` maps each finished request to the step it finished in."""

    def __init__(self, config: EngineConfig, cost: StepCost | None = None) -> None:
        generations = ListGenerations(config.num_blocks)
        self.pool = BlockPool(config.num_blocks, generations, config.num_host_blocks, config.host_min_tokens)
        self.scheduler = Scheduler(config, self.pool, VOCAB, cost)
        self.steps = 0
        self.done: dict[RequestKey, int] = {}
        self.on_reserved: Callable[[Request], None] = lambda request: None
        self.on_prefilled: Callable[[Request], None] = lambda request: None

    def step(self) -> SchedulePlan:
        """Schedules once and does what was decided."""
        self.steps += 1
        plan = self.scheduler.schedule()
        for request, _ in plan.ended:
            self.done[request.key] = self.steps
        for request in plan.reserved:
            self.on_reserved(request)
        for part in plan.scheduled:
            request, completes = part.request, part.completes
            self.scheduler.advance(request, part.num_new_tokens)
            if completes:
                self._draw(request)
        self.scheduler.check()
        return plan

    def _draw(self, request: Request) -> None:
        request.tokens.append(request.num_tokens % VOCAB)
        if request.kind is RequestKind.PREFILL:
            if request.lease_ended:
                self.scheduler.end(request)
            else:
                self.scheduler.hold(request)
            self.on_prefilled(request)
        elif finish_reason(request, self.scheduler.config) is not FinishReason.NONE:
            self.scheduler.end(request)
            self.done[request.key] = self.steps
