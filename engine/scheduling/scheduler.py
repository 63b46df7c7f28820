"""What to compute in the next step."""

from __future__ import annotations

from bisect import insort

from engine.blocks.block_pool import BlockPool
from engine.config import EngineConfig
from engine.scheduling.admission import check_admissible
from engine.scheduling.request import Request, RequestKey, RequestKind, RequestStatus
from engine.scheduling.request_memory import KnownPrefix, RequestMemory
from engine.scheduling.schedule_plan import ScheduledRequest, SchedulePlan
from engine.scheduling.step_budget import StepBudget
from engine.scheduling.step_cost import StepCost
from engine.scheduling.stopping import finish_reason
from engine.scheduling.waiting_line import WaitingLine
from wire.errors import ErrorCode, SpliceError
from wire.sampling import FinishReason


class Scheduler:
    """Decides, step by step, whose tokens are computed; owns every request and, through the pool, every block.

    There are no phases: each request's `num_computed_tokens` catches up with its `num_tokens`, whether the gap is a
    prompt, a chunk of it, one decoded token, or everything after a preemption.

    Order. Within the step's budget of tokens and milliseconds (`StepBudget`), decoding requests come first, then
    prompts being computed, then the waiting line by seniority: prompts get their first tokens one after another, none
    waits for all. The line is not overtaken: while its head does not fit, nobody behind it is admitted. Its head also
    waits, a bounded number of steps, while another computes the very block it would begin with.

    Ageing. A request is as senior as one of priority 0 that arrived `priority * ageing_steps` steps later; equals are
    served first come first. That is what "waiting `ageing_steps` steps is worth one level of priority" comes to, and
    it never changes: from any moment on only those overtake a request who have arrived already or do so within
    `ageing_steps` times the levels between them. So it becomes the most senior one, whatever keeps arriving.

    Memory. Whoever is admitted gets the blocks of all its tokens at once and, if it will decode here, one to grow
    into. A running request that needs another block takes it from the most junior preemptible one, which goes on
    later from what was kept of it (`RequestMemory.preempt`); if it is itself the most junior, it steps back. PREFILL
    is never preempted, its blocks being lent out as they are completed.

    Progress. Blocks that cannot be preempted belong to RESERVED, HELD, DRAINING and PREFILL requests. The first three
    end by events from outside, each under a deadline of its own (attach, lease, copy), and none of these events waits
    for a step of this engine; PREFILL has all the memory it needs. So these blocks always come back, and the most
    senior preemptible request, which is never preempted, fits once they did: a request that could outgrow the whole
    pool is refused at `submit`. It then finishes, and the next becomes the most senior. Until such an event
    `schedule` may find nothing to do; `has_work` says so.
    """

    def __init__(self, config: EngineConfig, pool: BlockPool, vocab_size: int, cost: StepCost | None = None) -> None:
        """`cost` predicts how long steps take, and is taught by whoever measures them; without it, time bounds none."""
        self.config = config
        self.pool = pool
        self.vocab_size = vocab_size
        self.requests: dict[RequestKey, Request] = {}
        self.waiting = WaitingLine()
        self.running: list[Request] = []
        self._memory = RequestMemory(config, pool)
        self.cost = cost
        self._ended: list[tuple[Request, FinishReason]] = []
        self._num_reserved = 0
        self._arrivals = 0
        self._steps = 0
        self._stuck = True

    def submit(self, request: Request) -> None:
        """Takes a request in. Raises SpliceError at once if it can never be served, or not under this key."""
        self._take_in(request)
        if not self._ended_already(request):
            self.waiting.add(request)

    def fork(self, parent_key: RequestKey, child: Request) -> None:
        """Takes in a request that branches off another: another choice, or a hypothesis of a beam.

        `child.tokens` may leave the parent's anywhere. A parent that runs lends the child the blocks of all tokens
        they have in common, and the child runs from there, copying a block only when one of the two writes to it.
        Without a place in the batch, or behind a parent that is not running or only prefills, the child waits in line
        and is computed like any other; the tokens are the same. It is as senior as its parent, and lives on its own:
        either may be preempted, aborted or end first.

        Raises SpliceError (invalid_request) if the parent is not here, or as `submit` does.
        """
        parent = self.requests.get(parent_key)
        if parent is None or child.kind is not RequestKind.GENERATE:
            raise SpliceError(
                ErrorCode.INVALID_REQUEST,
                f"cannot fork request {parent_key} into {child.key} ({child.kind.value}): expected a parent that is "
                "here and a child to be generated",
            )
        child.answer_is_apart = parent.answer_is_apart
        self._take_in(child)
        child.rank, child.arrival = parent.rank, parent.arrival
        child.num_cached_tokens, child.was_admitted = parent.num_cached_tokens, parent.was_admitted
        if self._ended_already(child):
            return
        lends = parent.status is RequestStatus.RUNNING and parent.kind is RequestKind.GENERATE
        if lends and self._has_seat():
            self._memory.fork(parent, child)
            child.status = RequestStatus.RUNNING
            insort(self.running, child, key=_seniority)
        else:
            self.waiting.add(child)

    def activate(self, key: RequestKey, first_tokens: list[int]) -> None:
        """RESERVED → RUNNING: the KV of all its tokens is in its blocks; `first_tokens` follow them.

        Raises SpliceError (invalid_request) if the request is not reserved, or `first_tokens` is empty or not of this
        vocabulary: they come from another process, and the batch the request joins must not suffer for it.
        """
        request = self.requests.get(key)
        if request is None or request.status is not RequestStatus.RESERVED or not first_tokens:
            status = request.status.value if request else "unknown"
            raise SpliceError(
                ErrorCode.INVALID_REQUEST,
                f"cannot activate request {key} ({status}) with {len(first_tokens)} tokens: expected a reserved "
                "request and at least the first token",
            )
        strange = [token for token in first_tokens if not 0 <= token < self.vocab_size]
        if strange:
            raise SpliceError(
                ErrorCode.INVALID_REQUEST,
                f"cannot activate request {key}: first tokens {strange} are not in the vocabulary of {self.vocab_size}",
            )
        self._stuck = False
        self._num_reserved -= 1
        self.advance(request, request.num_tokens - request.num_computed_tokens)
        request.tokens.extend(first_tokens)
        request.kind = RequestKind.GENERATE
        request.status = RequestStatus.RUNNING
        insort(self.running, request, key=_seniority)
        if (finish := finish_reason(request, self.config)) is not FinishReason.NONE:
            self.end(request)
            self._ended.append((request, finish))

    def abort(self, key: RequestKey, *, draining: bool = False) -> bool:
        """Ends a request in whatever state it is; False if it is not here.

        `draining`: a copy may still write to its blocks; those are kept until `drained`.
        """
        request = self.requests.get(key)
        if request is None:
            return False
        if request.status is RequestStatus.DRAINING:
            return True
        if draining and request.status is not RequestStatus.WAITING:
            self._leave_line(request)
            self.pool.drain(key)
            request.status = RequestStatus.DRAINING
        else:
            self.end(request)
        self._stuck = False
        return True

    def drained(self, key: RequestKey) -> None:
        """No copy can write to the blocks of an aborted request any more. Of no effect for any other."""
        request = self.requests.get(key)
        if request is not None and request.status is RequestStatus.DRAINING:
            self.end(request)

    def release_hold(self, key: RequestKey) -> None:
        """The lease on a PREFILL request ended. One still computing finishes first, and is then not held."""
        request = self.requests.get(key)
        if request is None or request.kind is not RequestKind.PREFILL:
            return
        request.lease_ended = True
        if request.status is RequestStatus.HELD:
            self.end(request)

    def has_work(self) -> bool:
        """Whether another `schedule` can find something to do; False until the next event if the last could not."""
        return not self._stuck and bool(self.running or self.waiting or self._ended)

    def schedule(self) -> SchedulePlan:
        """Decides the next step: counts tokens, finds memory, then admits from the waiting line."""
        self._steps += 1
        plan = SchedulePlan(ended=self._ended)
        self._ended = []
        grow, was_tight = self._memory.grow, False
        running = RequestStatus.RUNNING
        for request in list(self.running):
            if request.status is running and not grow(request):
                plan.num_preempted += self._make_room(request)
                was_tight = True
        decoding, prompts = [], []
        for request in self.running:
            gap = len(request.tokens) - request.num_computed_tokens
            if gap == 1 and (request.sampling.prompt_logprobs is None or not request.scores_prompt):
                decoding.append(request)
            elif gap:
                prompts.append(request)
        if was_tight:
            decoding = [request for request in decoding if self._memory.covers(request, 1)]
        budget = StepBudget(self.config, self.cost, crowded=len(prompts) + self.waiting.num_to_compute >= len(decoding))
        decoding = decoding[: budget.tokens_left]
        plan.scheduled += map(ScheduledRequest.of_next_token, decoding)
        budget.take_next_tokens([request.num_computed_tokens for request in decoding])
        for request in prompts:
            self._schedule_one(request, budget, plan)
        if not plan.num_preempted:
            self._admit(budget, plan)
        plan.copies = self._memory.take_copies()
        plan.work = budget.work
        if not (plan.scheduled or plan.admitted or plan.num_preempted):
            plan.num_preempted = self._step_back()
        self._stuck = not (plan.scheduled or plan.admitted or plan.num_preempted)
        return plan

    def advance(self, request: Request, num_new_tokens: int) -> None:
        """The KV of the next `num_new_tokens` tokens has been written: blocks now full can be found by others."""
        self._memory.written(request, num_new_tokens)

    def hold(self, request: Request) -> None:
        """A computed PREFILL request leaves the batch; its blocks stay until `release_hold`."""
        self.running.remove(request)
        self.pool.hold(request.key)
        request.status = RequestStatus.HELD

    def end(self, request: Request) -> None:
        """Forgets a request and takes all its blocks back."""
        self._leave_line(request)
        if request.status is RequestStatus.WAITING:
            self._memory.unkeep(request)
        elif request.status is RequestStatus.DRAINING:
            self._memory.discard(request)
        else:
            self._memory.release(request)
        del self.requests[request.key]
        self._stuck = False

    def fail(self, request: Request) -> None:
        """Ends a request whose computation went wrong; none of its blocks is found by others any more. One that was
        preempted while it was computed has no blocks by now."""
        self._leave_line(request)
        if request.status is RequestStatus.WAITING:
            self._memory.unkeep(request)
        else:
            self.pool.distrust(request.key)
            self._memory.discard(request)
        del self.requests[request.key]
        self._stuck = False

    def check(self) -> None:
        """Raises AssertionError where requests, lines, seats and pool disagree."""
        self.pool.check()
        self.waiting.check()
        owners = {key for key, request in self.requests.items() if request.status is not RequestStatus.WAITING}
        reserved = sum(1 for request in self.requests.values() if request.status is RequestStatus.RESERVED)
        waiting, running = set(self.waiting), set(self.running)
        problems = [
            f"{request.key} is {request.status.value} and stands in the wrong line"
            for request in self.requests.values()
            if (request in waiting) != (request.status is RequestStatus.WAITING)
            or (request in running) != (request.status is RequestStatus.RUNNING)
        ]
        problems += [
            f"{request.key} waits with computed tokens" for request in self.waiting if request.num_computed_tokens
        ]
        if self.pool.owners() != owners:
            problems.append(f"blocks belong to {self.pool.owners()}, requests with blocks are {owners}")
        if self._num_reserved != reserved:
            problems.append(f"{reserved} requests are reserved, counted {self._num_reserved}")
        if len(self.waiting) + len(self.running) > len(self.requests):
            problems.append("a line holds a request that is forgotten")
        if any(line != sorted(line, key=_seniority) for line in (list(self.waiting), self.running)):
            problems.append("a line is out of order")
        if problems:
            raise AssertionError("; ".join(problems))

    def _take_in(self, request: Request) -> None:
        check_admissible(request, self.config, self.vocab_size)
        if request.key in self.requests:
            raise SpliceError(ErrorCode.INVALID_REQUEST, f"request {request.key} is already here; keys are used once")
        self._stuck = False
        request.arrival, self._arrivals = self._arrivals, self._arrivals + 1
        request.rank = self._steps + request.priority * self.config.ageing_steps
        self.requests[request.key] = request

    def _ended_already(self, request: Request) -> bool:
        finish = finish_reason(request, self.config)
        if finish is FinishReason.NONE:
            return False
        del self.requests[request.key]
        self._ended.append((request, finish))
        return True

    def _has_seat(self) -> bool:
        return len(self.running) + self._num_reserved < self.config.max_num_seqs

    def _make_room(self, request: Request) -> int:
        """Gets the memory a running request lacks from its juniors; returns how many were preempted.

        In vain for the most senior one while nothing can be preempted for it: it then sits this step out.
        """
        num_preempted = 0
        while not self._memory.grow(request):
            preemptible = [r for r in self.running if r.kind is not RequestKind.PREFILL]
            if preemptible[0] is preemptible[-1]:
                break
            self._preempt(preemptible[-1])
            num_preempted += 1
            if preemptible[-1] is request:
                break
        return num_preempted

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._memory.preempt(request)
        request.status = RequestStatus.WAITING
        self.waiting.add(request)

    def _step_back(self) -> int:
        """Nothing moves: whoever only waits for others to catch up, as beams do, makes room for the head of the line.

        A more senior one stays, and so does a sibling. What they wait for is in the line too, as senior as they are, so
        that the most senior of those who wait for each other always get together. They fit side by side if they share
        what can be shared: a sibling that holds a copy of what is known to be elsewhere gives it up. Once it is back it
        holds no such copy, so that this comes to an end.
        """
        if not self.waiting:
            return 0
        head = self.waiting.head.seniority
        idle = [r for r in self.running if r.num_computed_tokens == r.num_tokens and not r.in_flight]
        juniors = [r for r in idle if r.seniority > head]
        siblings = [r for r in idle if r.seniority == head and self._memory.holds_copies(r)]
        for request in (juniors or siblings)[-1:]:
            self._preempt(request)
            return 1
        return 0

    def _schedule_one(self, request: Request, budget: StepBudget, plan: SchedulePlan) -> None:
        start, end = request.num_computed_tokens, len(request.tokens)
        scores, most = request.scores_prompt, self.config.max_num_batched_tokens
        if scores:
            # Every position asks for a row of logits as long as the vocabulary: few of them at a time.
            most = self.config.max_scored_tokens - sum(part.num_new_tokens for part in plan.scheduled if part.scored)
        count = budget.chunk(start, end, most, wants_logits=scores)
        if count > 0 and self._memory.covers(request, count):
            part = ScheduledRequest.of(request, count)
            plan.scheduled.append(part)
            budget.take(start, count, part.num_logits, is_prompt=end - start > 1)

    def _admit(self, budget: StepBudget, plan: SchedulePlan) -> None:
        """Lets the waiting line in, head first.

        Nobody is overtaken for memory or a place in the batch. Where only this step's budget is spent, or what it would
        compute is being computed for another, reservations behind go on, which cost none of it.
        """
        line_stands = False
        for request in tuple(self.waiting):
            if not self._has_seat():
                return
            reserves = request.is_computed_elsewhere
            if line_stands and not reserves:
                continue
            known = self._memory.find(request)
            if not reserves and self._waits_its_turn(request, known, budget, plan):
                line_stands = True
                continue
            if not self._memory.open(request, known):
                return
            self.waiting.remove(request)
            if not request.was_admitted:
                request.was_admitted = True
                request.num_cached_tokens = min(request.num_computed_tokens, request.num_prompt_tokens)
                plan.admitted.append(request)
            if reserves:
                request.status = RequestStatus.RESERVED
                self._num_reserved += 1
                plan.reserved.append(request)
            else:
                request.status = RequestStatus.RUNNING
                insort(self.running, request, key=_seniority)
                self._schedule_one(request, budget, plan)

    def _waits_its_turn(self, request: Request, known: KnownPrefix, budget: StepBudget, plan: SchedulePlan) -> bool:
        """Whether the step has no room for the head of the line, or others compute what it would compute.

        In each step it waits for others a block of it becomes known, unless they end or are preempted; it puts up with
        that no more often than it has blocks.
        """
        if not budget.chunk(known.num_tokens, request.num_tokens, self.config.max_num_batched_tokens):
            return True
        if request.num_steps_waived >= self.config.blocks_for(request.num_tokens):
            return False
        if not self._memory.is_being_computed(request, known, (part.request for part in plan.scheduled)):
            return False
        request.num_steps_waived += 1
        return True

    def _leave_line(self, request: Request) -> None:
        if request.status is RequestStatus.WAITING:
            self.waiting.remove(request)
        elif request.status is RequestStatus.RUNNING:
            self.running.remove(request)
        elif request.status is RequestStatus.RESERVED:
            self._num_reserved -= 1


def _seniority(request: Request) -> tuple[int, int]:
    return request.seniority
