"""One model, one KV cache, one batch: the loop's body."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np

from engine.blocks.block_pool import BlockPool
from engine.blocks.kv_cache import KVMemory
from engine.config import EngineConfig
from engine.device.device_lost import DeviceLost
from engine.load import EngineLoad, RequestSummary, measure_load, summarise_requests
from engine.models.causal_lm import CausalLM, PushingModel
from engine.sampling.beam_groups import BeamGroups
from engine.sampling.readout import Readout, read_logits
from engine.sampling.sampler import DrawnToken, SamplingRow
from engine.sampling.step_logits import HostLogits, StepLogits
from engine.scheduling.request import Request, RequestKey, RequestKind, RequestStatus
from engine.scheduling.schedule_plan import ScheduledRequest, SchedulePlan
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.stopping import ends_with_next, finish_reason, stopping_ids
from engine.steps.batch import StepBatch, not_drawn_yet
from engine.steps.launched_step import LaunchedStep
from engine.steps.pushes import Pushes, PushPort, charge
from engine.steps.slices import slices_of
from engine.steps.step_output import ComputedBlocks, EngineStats, Reservation, ScoredPrompt, StepOutput, TokenRow
from engine.warm_up import measure_cost
from wire.errors import ErrorCode, SpliceError
from wire.sampling import FinishReason, TokenLogprobs

_log = logging.getLogger(__name__)
_UNFINISHED, _PREFILL, _DRAINING = FinishReason.NONE, RequestKind.PREFILL, RequestStatus.DRAINING
"""Looking these up takes an enum longer than all else that is asked of one request in a step."""


class Engine:
    """Computes requests on one model, many at a time.

    Not thread-safe: one thread submits, steps and aborts. `kv_cache` and `pool` describe the same blocks; the model
    is bound to them from now on.
    """

    def __init__(
        self,
        model: CausalLM,
        kv_cache: KVMemory,
        config: EngineConfig,
        pool: BlockPool,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`clock` in seconds: how long steps take."""
        if pool.cache.num_host_blocks != config.num_host_blocks:
            raise SpliceError(
                ErrorCode.BAD_SETTING,
                f"num_host_blocks is {config.num_host_blocks}, the pool has {pool.cache.num_host_blocks}: expected the "
                "same number",
                param="num_host_blocks",
            )
        if not len(kv_cache) == pool.num_blocks == config.num_blocks:
            raise SpliceError(
                ErrorCode.BAD_SETTING,
                f"num_blocks is {config.num_blocks}, the KV cache has {len(kv_cache)} and the pool {pool.num_blocks}: "
                "expected the same number",
                param="num_blocks",
            )
        self.config = config
        self.stats = EngineStats()
        self.expected_step_s = 0.0
        """What the step under way, or the last one, is predicted to take; 0 before `warm_up`. Any thread reads it."""
        self._clock = clock
        self._model = model
        model.bind_kv_cache(kv_cache)
        self._mover = kv_cache.mover(config.num_host_blocks)
        self._scheduler = Scheduler(config, pool, model.spec.vocab_size)
        self._beams = BeamGroups(self._scheduler, config)
        self._runs_ahead = config.async_scheduling and model.runs_ahead
        self._in_flight: LaunchedStep | None = None
        self._pushes = Pushes()
        self._finished_s = 0.0

    def warm_up(self) -> None:
        """Computes a few small steps before the first request; from now on time bounds steps too."""
        self._scheduler.cost = measure_cost(lambda batch: self._forward(batch).wait(), self.config, self._clock)

    @property
    def can_push(self) -> bool:
        """Whether the model can store rows in a peer's cache besides."""
        return isinstance(self._model, PushingModel) and self._model.pushes

    def push_through(self, port: PushPort) -> None:
        """From now on rows of PREFILL requests are stored where `port` says besides. Only where it `can_push`."""
        assert isinstance(self._model, PushingModel)  # noqa: S101 - see `can_push`
        self._pushes = Pushes(port, self._model.record)

    def submit(self, request: Request) -> None:
        """Takes a request in. Raises SpliceError (context_length_exceeded, invalid_request) if it can never run."""
        request.answer_is_apart = self._model.answer_is_apart
        beam = request.sampling.beam
        if beam is not None:
            request.num_branches = beam.width
        self._scheduler.submit(request)
        if beam is not None:
            self._beams.open(request)

    def fork(self, parent_key: RequestKey, child: Request) -> None:
        """Takes in a request that goes on from the KV of another: see `Scheduler.fork`."""
        self._scheduler.fork(parent_key, child)

    def activate(self, key: RequestKey, first_tokens: list[int], logprobs: Sequence[TokenLogprobs] = ()) -> None:
        """A reserved request starts to decode: the KV of all its tokens has been written to its blocks.

        `first_tokens`, drawn elsewhere and emitted there, follow them. A beam search chooses its own from the
        alternatives in `logprobs`, and nobody saw another. Raises SpliceError (invalid_request) if `key` is not
        reserved.
        """
        if key in self._beams:
            self._beams.activate(key, logprobs[0] if logprobs else None)
        else:
            self._scheduler.activate(key, first_tokens)

    def abort(self, key: RequestKey, *, draining: bool = False) -> bool:
        """Ends a request in whatever state and frees its blocks; False if it is not here.

        `draining`: a copy from outside may still write to them, so they stay until `drained`.
        """
        if key in self._beams:
            self._beams.abort(key, draining=draining)
            return True
        return self._scheduler.abort(key, draining=draining)

    def drained(self, key: RequestKey) -> None:
        """No copy can write to an aborted request's blocks any more. Of no effect for others."""
        self._scheduler.drained(key)

    def release_hold(self, key: RequestKey) -> None:
        """PREFILL: the lease ended, the blocks may be reused. Of no effect for others."""
        self._scheduler.release_hold(key)

    def has_work(self) -> bool:
        """Whether `step` has something to compute, admit or report right now."""
        return self._in_flight is not None or self._scheduler.has_work() or self._beams.has_news

    def step(self) -> StepOutput:
        """receive → schedule → run → sample → update → emit.

        What was submitted, activated or aborted since the last step has been received. A failure ends the requests
        it concerns, named in `failed`; the others and the engine go on. Where the model runs ahead, this step is
        launched before the one before it is waited for, and the output says what the latter computed; raises
        DeviceLost where the device failed: nothing can be computed any more, and what this step found is not said.
        """
        began_s = self._clock()
        self._promise_tokens()
        plan = self._scheduler.schedule()
        self._expect(plan)
        self._mover.run(plan.copies)
        self.stats.count_copies(plan.copies)
        output = StepOutput()
        self._report(plan, output)
        launched = self._launch(plan, began_s)
        self._finish(output)
        if launched is not None:
            self._count(plan)
            self._go_on_from(launched)
        elif self._still_here(plan):
            self._count(plan)
            self._compute(plan, output)
            self._learn(plan, began_s)
        self._beams.report(output)
        return output

    def load(self) -> EngineLoad:
        """How busy the engine is right now."""
        return measure_load(self._scheduler)

    def requests(self, limit: int = 256) -> list[RequestSummary]:
        """Where each request stands, oldest first."""
        return summarise_requests(self._scheduler, limit)

    def check(self) -> None:
        """Raises AssertionError where the books do not balance."""
        self._scheduler.check()
        self._beams.check()

    def _report(self, plan: SchedulePlan, output: StepOutput) -> None:
        self.stats.preemptions += plan.num_preempted
        self.stats.prefix_hit_tokens += sum(request.num_cached_tokens for request in plan.admitted)
        for request, finish in plan.ended:
            seq = request.num_generated_tokens
            output.rows.append(TokenRow(request.key, seq, (), finish, request.num_cached_tokens))
        for request in plan.reserved:
            skip = request.num_computed_tokens // self.config.block_tokens
            blocks = tuple(request.block_ids[: self.config.blocks_for(request.num_tokens)])
            output.reserved.append(Reservation(request.key, request.num_computed_tokens, blocks, skip))

    def _expect(self, plan: SchedulePlan) -> None:
        cost = self._scheduler.cost
        if cost is not None:
            self.expected_step_s = cost.predict_ms(plan.work) / 1e3

    def _learn(self, plan: SchedulePlan, began_s: float) -> None:
        """A step took from where it began, or where the one before it was done, until now."""
        before_s, self._finished_s = self._finished_s, self._clock()
        took_s = self._finished_s - max(began_s, before_s)
        self.stats.longest_step_s = max(self.stats.longest_step_s, took_s)
        cost = self._scheduler.cost
        if cost is not None and not plan.copies:  # copies are no part of the work that is predicted
            if self._pushes.port is not None:
                charge(plan.scheduled, took_s - cost.predict_ms(plan.work) / 1e3)
            cost.observe(plan.work, took_s * 1e3)

    def _count(self, plan: SchedulePlan) -> None:
        stats = self.stats
        stats.steps += 1
        stats.max_batch_rows = max(stats.max_batch_rows, len(plan.scheduled))
        for part in plan.scheduled:
            prompt_left = part.request.num_prompt_tokens - part.request.num_computed_tokens
            if prompt_left > 0:
                stats.prompt_tokens += min(part.num_new_tokens, prompt_left)

    def _promise_tokens(self) -> None:
        """Whoever gets a token from the step in flight, and will go on whichever it is, can be scheduled with it."""
        drawing = self._in_flight.drawing if self._in_flight is not None else ()
        for index, part in enumerate(drawing):
            request = part.request
            is_last = request.kind is _PREFILL or ends_with_next(request, self.config)
            if not is_last and self._is_here(request):
                request.tokens.append(not_drawn_yet(index))

    def _launch(self, plan: SchedulePlan, began_s: float) -> LaunchedStep | None:
        """Has the device begin; None where the host must compute the step, or have a say in it before the next."""
        if not self._runs_ahead or not plan.scheduled or not all(map(self._is_plain, plan.scheduled)):
            return None
        try:
            drawing = [part for part in plan.scheduled if part.completes]
            rows = [part.request.sampling_row or self._sampling_row(part.request) for part in drawing]
            return LaunchedStep(plan, drawing, self._run(plan).start_draw(range(len(rows)), rows), began_s)
        except DeviceLost:
            raise
        except Exception:  # what is wrong with the batch shows when it is computed again, request by request
            _log.exception(
                "a batch of %d was not launched; it is computed once the one before it is done", len(plan.scheduled)
            )
            return None

    def _is_plain(self, part: ScheduledRequest) -> bool:
        """Whether nothing but the next token, plainly drawn, is wanted of its logits."""
        request = part.request
        if part.scored or request.sampling.beam is not None:
            return False
        return not part.completes or (request.sampling_row or self._sampling_row(request)).is_plain

    def _go_on_from(self, launched: LaunchedStep) -> None:
        """What it computes counts as computed for whatever is queued behind it."""
        self._in_flight = launched
        for part in launched.plan.scheduled:
            if self._is_here(part.request):
                part.request.in_flight = True
                self._scheduler.advance(part.request, part.num_new_tokens)

    def _finish(self, output: StepOutput) -> None:
        """Waits for the step in flight, and says what it computed.

        Before the output is given out: a row may be on its way into a block that its request gave back meanwhile, and
        who is told of a reservation writes to its blocks past the device's queue.
        """
        step, self._in_flight = self._in_flight, None
        if step is None:
            return
        drawn = iter(step.draw.wait())
        self._learn(step.plan, step.began_s)
        for part in step.plan.scheduled:
            part.request.in_flight = False
            token = next(drawn) if part.completes else None
            if not self._is_here(part.request):
                continue
            if isinstance(token, Exception):
                self._fail(part.request, token, output)
            else:
                self._emit(part.request, token, output)

    def _still_here(self, plan: SchedulePlan) -> list[ScheduledRequest]:
        """Leaves out of the plan whoever ended since it was made."""
        plan.scheduled = [part for part in plan.scheduled if self._is_here(part.request)]
        return plan.scheduled

    def _compute(self, plan: SchedulePlan, output: StepOutput) -> None:
        """Run → sample → update → emit. A batch that fails is computed again one by one: who fails alone is at fault.

        Alone or batched gives the same bits, and what the failed run wrote is written again.
        """
        try:
            readouts = read_logits(plan.scheduled, self._run(plan), self._sampling_row, self._beams.num_options)
        except DeviceLost:
            raise
        except Exception as error:  # the boundary of one batch: the engine goes on
            if len(plan.scheduled) == 1:
                self._fail(plan.scheduled[0].request, error, output)
                return
            _log.exception("a batch of %d failed; its requests are computed one by one", len(plan.scheduled))
            for part in plan.scheduled:
                if self._is_here(part.request):
                    self._compute(SchedulePlan(scheduled=[part]), output)
        else:
            caught_up = []
            for readout in readouts:
                self._update(readout, output)
                if readout.options is not None and self._is_here(readout.part.request):
                    caught_up.append((readout.part.request, readout.options))
            for request, failure in self._beams.offer(caught_up):
                self._fail(request, failure, output)

    def _run(self, plan: SchedulePlan) -> StepLogits:
        """`num_logits` rows of each part."""
        with self._pushes.launch(plan.scheduled) as peers:
            logits = self._forward(StepBatch(slices_of(plan.scheduled, self.config.block_tokens, peers)))
        expected = (sum(part.num_logits for part in plan.scheduled), self._model.spec.vocab_size)
        if logits.shape != expected:
            raise ValueError(f"the model returned logits {logits.shape}, expected {expected}")
        return logits

    def _forward(self, batch: StepBatch) -> StepLogits:
        logits = self._model.forward(batch)
        return HostLogits(logits) if isinstance(logits, np.ndarray) else logits

    def _sampling_row(self, request: Request) -> SamplingRow:
        if request.sampling_row is None:
            ids = stopping_ids(request.sampling, self.config.eos_token_ids)
            request.sampling_row = SamplingRow(request.sampling, request.tokens, request.num_prompt_tokens, ids)
        return request.sampling_row

    def _update(self, readout: Readout, output: StepOutput) -> None:
        part, request = readout.part, readout.part.request
        if not self._is_here(request):
            return
        if readout.error is not None:
            self._fail(request, readout.error, output)
            return
        if readout.prompt_logprobs:
            first = request.num_scored_tokens + 1
            output.scored.append(ScoredPrompt(request.key, first, readout.prompt_logprobs))
            request.num_scored_tokens += len(readout.prompt_logprobs)
        self._scheduler.advance(request, part.num_new_tokens)
        if readout.options is not None:
            self.stats.generated_tokens += 1
        self._emit(request, readout.drawn, output)

    def _emit(self, request: Request, drawn: DrawnToken | None, output: StepOutput) -> None:
        if request.kind is _PREFILL:
            self._emit_computed(request, drawn is not None, output)
        if drawn is not None:
            self._emit_token(request, drawn, output)

    def _is_here(self, request: Request) -> bool:
        """False for one that ended while it was computed: its client left, or a beam of the same search failed."""
        return self._scheduler.requests.get(request.key) is request and request.status is not _DRAINING

    def _emit_computed(self, request: Request, is_last: bool, output: StepOutput) -> None:
        first = max(request.num_announced_blocks, request.skip_tokens // self.config.block_tokens)
        computed = request.num_computed_tokens
        end = self.config.blocks_for(computed) if is_last else computed // self.config.block_tokens
        if end > first:
            blocks = tuple(request.block_ids[first:end])
            pushed = None if request.pushed_from is None else self.config.blocks_for(request.pushed_from)
            done = ComputedBlocks(request.key, first, blocks, computed, is_last, pushed, request.excess_s)
            output.computed.append(done)
            request.num_announced_blocks = end

    def _emit_token(self, request: Request, drawn: DrawnToken, output: StepOutput) -> None:
        tokens = request.tokens
        if tokens[-1] < 0:  # what stood for it
            tokens.pop()
        seq = len(tokens) - request.num_prompt_tokens
        tokens.append(drawn.token)
        self.stats.generated_tokens += 1
        finish = finish_reason(request, self.config)
        logprobs: tuple[TokenLogprobs, ...] | None = (drawn.logprobs,) if drawn.logprobs else None
        is_prefill = request.kind is _PREFILL
        handed_off = is_prefill and finish is _UNFINISHED
        cached = request.num_cached_tokens
        output.rows.append(TokenRow(request.key, seq, (drawn.token,), finish, cached, logprobs, handed_off))
        if is_prefill and not request.lease_ended:
            self._scheduler.hold(request)
        elif is_prefill or finish is not _UNFINISHED:
            self._scheduler.end(request)

    def _fail(self, request: Request, error: Exception, output: StepOutput) -> None:
        """Ends one request over `error`; what it computed is not offered to others."""
        _log.error("request %s failed", request.key, exc_info=error)
        key = request.key
        if request.sampling.beam is not None:
            key = self._beams.fail(request)
        else:
            self._scheduler.fail(request)
        name = f"request {key[0]:016x} attempt {key[1]}"
        if isinstance(error, SpliceError):
            named = SpliceError(error.code, f"{name}: {error.message}", param=error.param)
        else:
            what = f"{name} failed in the engine, which goes on: {type(error).__name__}: {error}"
            named = SpliceError(ErrorCode.INTERNAL_ERROR, what)
        output.failed.append((key, named))
