"""Whatever workers and networks do, a request's tokens come out once, in order, with one terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from router.events import (
    Action,
    ChoosePair,
    ClientGone,
    Event,
    Fail,
    Failed,
    Finish,
    HandedOff,
    HandoffFigures,
    NoPair,
    Picked,
    Release,
    Reserved,
    SendAttach,
    SendCancel,
    SendGenerate,
    SendPrefill,
    SendReserve,
    StopFound,
    Tick,
    TokenRow,
    WorkerKey,
    WorkerLost,
    WorkersChanged,
)
from router.lifecycle import LifecycleLimits, Phase, RequestLifecycle
from wire.errors import ErrorCode, SpliceError
from wire.sampling import FinishReason

P0, P1 = ("p0", 1), ("p1", 1)
D0, D1, D2 = ("d0", 1), ("d1", 1), ("d2", 1)
PROMPT = tuple(range(100, 164))


def make(**limits: float) -> RequestLifecycle:
    return RequestLifecycle(PROMPT, LifecycleLimits(**limits), deadline_s=100.0)  # type: ignore[arg-type]


def picked(lifecycle: RequestLifecycle, decode: WorkerKey = D0, prefill: WorkerKey | None = P0) -> list[Action]:
    return lifecycle.handle(Picked(decode, prefill), 0.0)


def row(worker: WorkerKey, seq: int, *tokens: int, attempt: int = 1, **more: object) -> TokenRow:
    return TokenRow(worker, attempt, seq, tokens, **more)  # type: ignore[arg-type]


def streaming(**limits: float) -> RequestLifecycle:
    """Handed over, P's first token released."""
    lifecycle = make(**limits)
    lifecycle.start()
    picked(lifecycle)
    lifecycle.handle(Reserved(D0, 1, 0), 0.0)
    lifecycle.handle(row(P0, 0, 7, handed_off=True), 0.0)
    lifecycle.handle(HandedOff(D0, 1, HandoffFigures("shm", 10)), 0.0)
    return lifecycle


def released(actions: list[Action]) -> list[int]:
    return [token for action in actions if isinstance(action, Release) for token in action.tokens]


def terminal(actions: list[Action]) -> Finish | Fail:
    [end] = [action for action in actions if isinstance(action, Finish | Fail)]
    return end


def test_decode_reserves_before_prefill_computes() -> None:
    lifecycle = make()
    assert lifecycle.start() == [ChoosePair(frozenset())]
    assert picked(lifecycle) == [SendReserve(D0, 1, PROMPT)]
    assert lifecycle.handle(Reserved(D0, 1, 32), 0.0) == [SendPrefill(P0, 1, PROMPT, 32), SendAttach(D0, 1, P0)]


def test_the_second_token_never_overtakes_the_first() -> None:
    lifecycle = make()
    lifecycle.start()
    picked(lifecycle)
    lifecycle.handle(Reserved(D0, 1, 0), 0.0)
    assert released(lifecycle.handle(row(D0, 1, 8), 0.0)) == []
    assert released(lifecycle.handle(row(P0, 0, 7, handed_off=True), 0.0)) == [7, 8]


def test_finish_on_the_first_token_cancels_decode() -> None:
    lifecycle = make()
    lifecycle.start()
    picked(lifecycle)
    lifecycle.handle(Reserved(D0, 1, 0), 0.0)
    actions = lifecycle.handle(row(P0, 0, 7, finish=FinishReason.STOP), 0.0)
    assert [type(action) for action in actions] == [Release, SendCancel, Finish]
    assert actions[1] == SendCancel(D0, 1, "finished")


def test_repeated_and_stale_tokens_are_dropped() -> None:
    lifecycle = streaming()
    assert released(lifecycle.handle(row(D0, 1, 8), 0.0)) == [8]
    assert released(lifecycle.handle(row(D0, 1, 8), 0.0)) == []
    lifecycle.handle(WorkerLost(D0), 0.0)
    picked(lifecycle, D1, None)
    assert released(lifecycle.handle(row(D0, 2, 9), 0.0)) == []
    assert released(lifecycle.handle(row(D0, 2, 9, attempt=2), 0.0)) == []
    assert released(lifecycle.handle(row(D1, 2, 9, attempt=2), 0.0)) == [9]
    assert lifecycle.dropped_tokens == 3


def test_nothing_of_an_older_attempt_counts_even_from_the_same_worker() -> None:
    lifecycle = make()
    lifecycle.start()
    picked(lifecycle)
    broken = SpliceError(ErrorCode.KV_TRANSFER_FAILED, "reset")
    lifecycle.handle(Failed(D0, 1, broken, True, "p0"), 0.0)
    picked(lifecycle, D0, P1)
    assert lifecycle.handle(Reserved(D0, 1, 0), 0.0) == []
    assert lifecycle.handle(row(D0, 0, 99), 0.0) == []
    assert lifecycle.handle(Failed(D0, 1, broken, True), 0.0) == []
    assert lifecycle.handle(Reserved(D0, 2, 0), 0.0)[0] == SendPrefill(P1, 2, PROMPT, 0)
    assert released(lifecycle.handle(row(P1, 0, 7, attempt=2), 0.0)) == [7]


def test_a_lost_decode_worker_is_replaced_with_prompt_and_emitted_tokens() -> None:
    lifecycle = streaming()
    lifecycle.handle(row(D0, 1, 8), 0.0)
    actions = lifecycle.handle(WorkerLost(D0), 0.0)
    assert actions[-1] == ChoosePair(frozenset({D0}))
    assert SendCancel(P0, 1, "attempt given up") in actions
    assert picked(lifecycle, D1, P1) == [SendReserve(D1, 2, (*PROMPT, 7, 8))]


def test_losing_prefill_after_the_hand_off_disturbs_nothing() -> None:
    lifecycle = streaming()
    assert lifecycle.handle(WorkerLost(P0), 0.0) == []
    assert released(lifecycle.handle(row(D0, 1, 8), 0.0)) == [8]


def test_losing_prefill_before_its_first_token_arrived_starts_over_even_if_decode_is_ready() -> None:
    lifecycle = make()
    lifecycle.start()
    picked(lifecycle)
    lifecycle.handle(Reserved(D0, 1, 0), 0.0)
    lifecycle.handle(row(D0, 1, 8), 0.0)
    assert lifecycle.handle(WorkerLost(P0), 0.0)[-1] == ChoosePair(frozenset({P0}))
    assert picked(lifecycle, D0, None) == [SendGenerate(D0, 2, PROMPT)]


def test_two_workers_down_quarantine_the_request() -> None:
    lifecycle = streaming()
    lifecycle.handle(WorkerLost(D0), 0.0)
    picked(lifecycle, D1, None)
    end = terminal(lifecycle.handle(WorkerLost(D1), 0.0))
    assert isinstance(end, Fail)
    assert end.error.code is ErrorCode.INTERNAL_ERROR
    assert "quarantined" in end.error.message


def test_a_worker_blamed_for_a_transfer_counts_once_it_is_lost() -> None:
    lifecycle = make()
    lifecycle.start()
    picked(lifecycle)
    lifecycle.handle(Reserved(D0, 1, 0), 0.0)
    broken = SpliceError(ErrorCode.KV_TRANSFER_FAILED, "reset")
    assert lifecycle.handle(Failed(D0, 1, broken, True, "p0"), 0.0)[-1] == ChoosePair(frozenset({P0}))
    picked(lifecycle, D0, P1)
    lifecycle.handle(Reserved(D0, 2, 0), 0.0)
    assert lifecycle.handle(WorkerLost(P0), 0.0) == []
    assert "quarantined" in str(terminal(lifecycle.handle(WorkerLost(P1), 0.0)).error)  # type: ignore[union-attr]


def test_refusals_are_tried_elsewhere_and_never_quarantine() -> None:
    lifecycle = make()
    lifecycle.start()
    refusal = SpliceError(ErrorCode.OVERLOADED, "full")
    for attempt, decode in enumerate((D0, D1, D2), 1):
        picked(lifecycle, decode, None)
        actions = lifecycle.handle(Failed(decode, attempt, refusal, True), 0.0)
        assert isinstance(actions[-1], ChoosePair)
    nobody = NoPair(SpliceError(ErrorCode.NO_DECODE_WORKERS, "none"))
    assert terminal(lifecycle.handle(nobody, 0.0)) == Fail(refusal)


def test_attempts_are_bounded() -> None:
    lifecycle = make(max_attempts=3)
    lifecycle.start()
    refusal = SpliceError(ErrorCode.KV_TRANSFER_FAILED, "again")
    for attempt in (1, 2):
        picked(lifecycle)
        lifecycle.handle(Failed(D0, attempt, refusal, True), 0.0)
    picked(lifecycle)
    end = terminal(lifecycle.handle(Failed(D0, 3, refusal, True), 0.0))
    assert isinstance(end, Fail)
    assert end.error.code is ErrorCode.INTERNAL_ERROR


def test_an_error_that_any_worker_would_repeat_is_passed_on_at_once() -> None:
    lifecycle = make()
    lifecycle.start()
    picked(lifecycle)
    error = SpliceError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, "too long")
    actions = lifecycle.handle(Failed(D0, 1, error, False), 0.0)
    assert terminal(actions) == Fail(error)
    assert SendCancel(P0, 1, "failed") in actions


def test_no_decode_worker_fails_after_the_grace_and_not_before() -> None:
    nobody = NoPair(SpliceError(ErrorCode.NO_DECODE_WORKERS, "none"))
    assert terminal(make().handle(nobody, 0.0)) == Fail(nobody.error)
    patient = make(no_worker_grace_s=2.0)
    assert patient.handle(nobody, 10.0) == []
    assert patient.next_tick_s == 12.0
    assert patient.handle(WorkersChanged(), 11.0) == [ChoosePair(frozenset())]
    assert patient.handle(nobody, 11.0) == []
    assert patient.handle(Tick(), 12.0) == [ChoosePair(frozenset())]
    assert terminal(patient.handle(nobody, 12.0)) == Fail(nobody.error)


def test_prompts_that_are_short_or_nearly_cached_are_computed_on_decode() -> None:
    short = make(max_local_prefill_tokens=64)
    short.start()
    assert picked(short) == [SendGenerate(D0, 1, PROMPT)]
    cached = make(max_local_prefill_tokens=40)
    cached.start()
    picked(cached)
    cancel, generate = cached.handle(Reserved(D0, 1, 32), 0.0)
    assert isinstance(cancel, SendCancel)
    assert generate == SendGenerate(D0, 2, PROMPT)
    assert released(cached.handle(row(D0, 0, 7, attempt=2), 0.0)) == [7]
    assert cached.failures == 0


def test_the_deadline_cancels_both_workers() -> None:
    lifecycle = make()
    lifecycle.start()
    picked(lifecycle)
    lifecycle.handle(Reserved(D0, 1, 0), 0.0)
    actions = lifecycle.handle(Tick(), 100.0)
    assert {action.worker for action in actions if isinstance(action, SendCancel)} == {D0, P0}
    assert terminal(actions).error.code is ErrorCode.DEADLINE_EXCEEDED  # type: ignore[union-attr]


def test_a_client_that_leaves_and_a_stop_string_cancel_both_workers() -> None:
    for event, kind in ((ClientGone(), Fail), (StopFound(), Finish)):
        lifecycle = streaming()
        actions = lifecycle.handle(event, 0.0)
        assert {action.worker for action in actions if isinstance(action, SendCancel)} == {D0, P0}
        assert isinstance(terminal(actions), kind)
        assert lifecycle.handle(event, 0.0) == []


# Any schedule ---------------------------------------------------------------------------------------------------------

PICK = st.randoms(use_true_random=False)
ANSWER = [(index * 37 + 5) % 91 for index in range(12)]


@dataclass
class SimJob:
    worker: WorkerKey
    attempt: int
    seq: int
    kind: str
    source: WorkerKey | None = None


@dataclass
class Network:
    """Jobs at live workers; messages that may arrive late, twice, in any order, or never if their sender died."""

    live: set[WorkerKey] = field(default_factory=set)
    jobs: list[SimJob] = field(default_factory=list)
    flying: list[Event] = field(default_factory=list)


class AnySchedule(RuleBasedStateMachine):
    """Workers compute `ANSWER`; crashes, refusals, reordering and duplicates come as the search likes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Network(live={P0, P1, D0, D1, D2})
        self.lifecycle = RequestLifecycle(PROMPT, LifecycleLimits(), deadline_s=1e9)
        self.out: list[int] = []
        self.terminals: list[Finish | Fail] = []
        self.incarnation = 1
        self.carry_out(self.lifecycle.start())

    def feed(self, event: Event) -> None:
        self.carry_out(self.lifecycle.handle(event, 0.0))

    def carry_out(self, actions: list[Action]) -> None:
        todo = list(actions)
        while todo:
            action = todo.pop(0)
            match action:
                case ChoosePair(excluded):
                    todo += self.lifecycle.handle(self.choose(excluded), 0.0)
                case Release(tokens):
                    assert not self.terminals
                    self.out += tokens
                case Finish() | Fail():
                    self.terminals.append(action)
                case SendReserve(worker, attempt, tokens):
                    self.net.jobs.append(SimJob(worker, attempt, len(tokens) - len(PROMPT), "reserved"))
                    self.net.flying.append(Reserved(worker, attempt, 0))
                case SendPrefill(worker, attempt, tokens) | SendGenerate(worker, attempt, tokens):
                    assert tokens == PROMPT + tuple(self.out)
                    kind = "prefill" if isinstance(action, SendPrefill) else "decode"
                    self.net.jobs.append(SimJob(worker, attempt, len(tokens) - len(PROMPT), kind))
                case SendAttach(worker, attempt, source):
                    for job in self.net.jobs:
                        if (job.worker, job.attempt, job.kind) == (worker, attempt, "reserved"):
                            job.source, job.kind = source, "fetching"
                case SendCancel(worker, attempt, _):
                    self.net.jobs = [j for j in self.net.jobs if (j.worker, j.attempt) != (worker, attempt)]

    def choose(self, excluded: frozenset[WorkerKey]) -> Event:
        usable = sorted(self.net.live - excluded)
        decoders = [each for each in usable if each[0][0] == "d"]
        prefillers = [each for each in usable if each[0][0] == "p"]
        if not decoders:
            return NoPair(SpliceError(ErrorCode.NO_DECODE_WORKERS, "none"))
        return Picked(decoders[0], prefillers[0] if prefillers else None)

    def computing(self) -> list[SimJob]:
        return [job for job in self.net.jobs if job.kind in ("prefill", "decode")]

    def fetching(self) -> list[SimJob]:
        return [job for job in self.net.jobs if job.kind == "fetching"]

    @precondition(lambda self: self.computing())
    @rule(pick=PICK, size=st.integers(1, 3))
    def compute(self, pick: Random, size: int) -> None:
        self.step(pick.choice(self.computing()), size)

    def step(self, job: SimJob, size: int) -> None:
        tokens = tuple(ANSWER[job.seq : job.seq + (1 if job.kind == "prefill" else size)])
        done = job.seq + len(tokens) == len(ANSWER)
        finish = FinishReason.LENGTH if done else FinishReason.NONE
        handed_off = job.kind == "prefill" and not done
        self.net.flying.append(TokenRow(job.worker, job.attempt, job.seq, tokens, finish, handed_off=handed_off))
        job.seq += len(tokens)
        if done:
            self.net.jobs.remove(job)
        elif handed_off:
            job.kind = "held"

    @precondition(lambda self: self.fetching())
    @rule(pick=PICK)
    def fetch(self, pick: Random) -> None:
        self.pull(pick.choice(self.fetching()))

    def pull(self, job: SimJob) -> None:
        held = [j for j in self.net.jobs if (j.worker, j.attempt, j.kind) == (job.source, job.attempt, "held")]
        if held:
            self.net.jobs.remove(held[0])
            job.seq, job.kind = held[0].seq, "decode"
            self.net.flying.append(HandedOff(job.worker, job.attempt, HandoffFigures("shm")))
        elif job.source is not None and job.source not in self.net.live:
            self.net.jobs.remove(job)
            error = SpliceError(ErrorCode.KV_TRANSFER_FAILED, "source is gone")
            self.net.flying.append(Failed(job.worker, job.attempt, error, True, job.source[0]))

    @precondition(lambda self: self.net.flying)
    @rule(pick=PICK, again=st.booleans())
    def deliver(self, pick: Random, again: bool) -> None:
        event = pick.choice(self.net.flying)
        if not again:
            self.net.flying.remove(event)
        if isinstance(event, TokenRow) and event.attempt != self.lifecycle.attempt:
            # Must be dropped unread, so it may as well be wrong.
            event = msgspec.structs.replace(event, tokens=tuple(-1 for _ in event.tokens))
        self.feed(event)

    @precondition(lambda self: self.net.live)
    @rule(pick=PICK)
    def crash(self, pick: Random) -> None:
        """Messages of the dead that were under way may be lost or still arrive after the news of the loss."""
        worker = pick.choice(sorted(self.net.live))
        self.net.live.discard(worker)
        self.net.jobs = [job for job in self.net.jobs if job.worker != worker]
        self.net.flying = [each for each in self.net.flying if each.worker != worker or pick.random() < 0.5]  # type: ignore[union-attr]
        self.feed(WorkerLost(worker, "killed"))

    @rule(pick=PICK)
    def restart(self, pick: Random) -> None:
        """A dead worker comes back as another incarnation; nothing it had is left."""
        dead = [name for name, _ in (P0, P1, D0, D1, D2) if not any(name == live for live, _ in self.net.live)]
        if dead:
            self.incarnation += 1
            self.net.live.add((pick.choice(dead), self.incarnation))
        self.feed(WorkersChanged())

    @invariant()
    def what_is_out_is_the_answer_so_far(self) -> None:
        assert self.out == ANSWER[: len(self.out)]
        self.lifecycle.check()

    @invariant()
    def there_is_one_terminal_and_it_is_right(self) -> None:
        assert len(self.terminals) <= 1
        assert bool(self.terminals) == (self.lifecycle.phase is Phase.END)
        if self.terminals and isinstance(self.terminals[0], Finish):
            assert self.out == ANSWER

    def teardown(self) -> None:
        """With faults off, every request comes to its end."""
        for _ in range(500):
            if self.terminals:
                break
            if self.net.flying:
                self.feed(self.net.flying.pop(0))
                continue
            for job in self.fetching():
                self.pull(job)
            for job in self.computing():
                self.step(job, 1)
        assert self.terminals, f"stuck in {self.lifecycle.phase} with {self.net}"
        self.there_is_one_terminal_and_it_is_right()


AnySchedule.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnyScheduleOfFaults = AnySchedule.TestCase
