"""Seeded storms over a small cluster: clients stream while workers and etcd are killed, frozen and restarted.

`python -m tests.e2e.chaos --seed 1 --rounds 5`. Each round asks its own requests; what every finished stream said is
compared with an engine of our own that nothing disturbs, and afterwards nothing may be left in any worker.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psutil

from tests.e2e.cluster import Cluster, cluster, wait_for
from tests.e2e.undisturbed import Answer as Expected
from tests.e2e.undisturbed import Undisturbed
from tests.tiny_model import write_tiny_model
from wire.convert import sampling_to_proto
from wire.sampling import SamplingParams
from wire.v1 import inference_pb2, inference_pb2_grpc
from wire.worker_record import Role

WORKER_FLAGS = ("--max-model-len", "1824", "--num-kv-blocks", "60", "--max-num-batched-tokens", "128")
"""A pool of 60 blocks holds one longest request and three blocks more."""
TIMES = ("--max-num-seqs", "12", "--lease-ttl", "4", "--registration-ttl", "3", "--drain-timeout", "3")
FREEZES_S = (0.3, 1.5, 2.9, 3.1, 4.5, 6.0)
"""Around the heartbeat timeout of 3 s: some go unnoticed, some cost the worker its requests, some end just then."""
SIGNALS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP, "dismiss": signal.SIGTERM}
ANSWER_S = 100.0
HANG_S = 130.0
BLAME_S = 8.0
"""How long after a disturbance an error may still be its consequence: detection, and a start of a worker."""
LEAK_MARGIN = 24
"""Descriptors or threads a worker may have more than at first: channels to peers that came meanwhile."""


@dataclass(frozen=True, slots=True)
class Ask:
    prompt: tuple[int, ...]
    sampling: SamplingParams
    start_s: float
    leave_after: int | None
    """Tokens after which the client hangs up."""


@dataclass(slots=True)
class Heard:
    """What one client got."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    terminals: int = 0
    finish: int = 0
    usage: inference_pb2.Usage | None = None
    attempts: int = 0
    error: str = ""
    ended_s: float = 0.0
    left: bool = False
    done: bool = False


@dataclass(slots=True)
class Disturbance:
    role: str
    slot: int
    began_s: float
    ended_s: float = float("inf")


def draw_asks(rng: random.Random, count: int, vocabulary: int, spread_s: float) -> list[Ask]:
    """Mixed lengths, shared beginnings, greedy and sampled, some clients impatient."""
    stems = [[rng.randrange(vocabulary) for _ in range(rng.choice((64, 300, 900)))] for _ in range(3)]
    asks = []
    for _ in range(count):
        stem = rng.choice(stems)[: rng.randrange(900)] if rng.random() < 0.6 else []
        longest = rng.choice((8, 60, 300, 1500)) - len(stem)
        prompt = [*stem, *(rng.randrange(vocabulary) for _ in range(rng.randint(1, max(longest, 1))))]
        max_tokens = rng.choice((1, 2, 31, 33, rng.randint(1, 120), rng.randint(100, 300)))
        sampled = rng.random() < 0.5
        sampling = SamplingParams(
            max_tokens=max_tokens,
            temperature=rng.choice((0.6, 1.0)) if sampled else 0.0,
            top_p=rng.choice((0.9, 1.0)) if sampled else 1.0,
            seed=rng.randrange(1 << 32),
            logprobs=rng.choice((None, 0, 2)),
            ignore_eos=rng.random() < 0.8,
        )
        leave = rng.randint(0, max_tokens) if rng.random() < 0.2 else None
        asks.append(Ask(tuple(prompt), sampling, rng.uniform(0, spread_s), leave))
    return asks


class Client(threading.Thread):
    """Streams one request; never raises, tells everything in `heard`."""

    def __init__(self, target: str, ask: Ask) -> None:
        super().__init__(daemon=True)
        self.ask = ask
        self.heard = Heard()
        self._target = target

    def run(self) -> None:
        time.sleep(self.ask.start_s)
        heard = self.heard
        request = inference_pb2.GenerateRequest(
            token_ids=inference_pb2.TokenIds(ids=self.ask.prompt),
            sampling=sampling_to_proto(self.ask.sampling),
            timeout_s=ANSWER_S,
        )
        try:
            with grpc.insecure_channel(self._target) as channel:
                call = inference_pb2_grpc.InferenceStub(channel).Generate(request, timeout=HANG_S)
                if self.ask.leave_after == 0:
                    time.sleep(0.05)
                    heard.left = True
                    call.cancel()
                for message in call:
                    self._take(message)
                    if self.ask.leave_after is not None and len(heard.tokens) >= self.ask.leave_after:
                        heard.left = True
                        call.cancel()
        except grpc.RpcError as error:
            metadata = dict(error.trailing_metadata() or ())
            heard.error = f"{metadata.get('splice-error-code', error.code().name)}: {error.details()}"
        heard.ended_s = time.monotonic()
        heard.done = True

    def _take(self, message: inference_pb2.GenerateResponse) -> None:
        heard = self.heard
        if heard.terminals:
            heard.terminals += 1
        heard.tokens.extend(message.token_ids)
        heard.logprobs.extend(each.logprob for each in message.logprobs)
        if message.HasField("usage"):
            heard.terminals = max(heard.terminals, 1)
            heard.finish, heard.usage, heard.attempts = message.finish, message.usage, message.receipt.attempts


class Storm:
    """Kills, freezes and restarts processes of a cluster at moments drawn from `rng`, until `stop`."""

    def __init__(
        self,
        running: Cluster,
        rng: random.Random,
        slots: dict[tuple[str, int], subprocess.Popen[bytes]],
        flags: tuple[str, ...],
    ) -> None:
        self.disturbances: list[Disturbance] = []
        self.counts: Counter[str] = Counter()
        self.slots = slots
        self.leaving: list[subprocess.Popen[bytes]] = []
        self._running = running
        self._rng = rng
        self._flags = flags
        self._stopping = threading.Event()
        self._pending: list[tuple[float, str, tuple[str, int] | None, Disturbance | None]] = []
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the storm and undoes what it has done; raises what went wrong in it."""
        self._stopping.set()
        self._thread.join(60)
        for _, what, slot, disturbance in sorted(self._pending, key=lambda each: each[1] != "thaw"):
            self._undo(what, slot, disturbance)
        self._pending.clear()
        if self.error is not None:
            raise self.error

    def disturbed(self, role: str, at_s: float) -> int:
        """Workers of this role that were not themselves shortly before `at_s`."""
        alike = (each for each in self.disturbances if each.role == role)
        return len({each.slot for each in alike if each.began_s <= at_s <= each.ended_s + BLAME_S})

    def _run(self) -> None:
        try:
            while not self._stopping.wait(self._rng.choice((0.1, 0.5, 1.5))):
                now_s = time.monotonic()
                due = [each for each in self._pending if each[0] <= now_s]
                self._pending = [each for each in self._pending if each[0] > now_s]
                for _, what, slot, disturbance in due:
                    self._undo(what, slot, disturbance)
                self._disturb(now_s)
        except BaseException as error:
            self.error = error

    def _disturb(self, now_s: float) -> None:
        busy = {slot for _, _, slot, _ in self._pending}
        what = self._rng.choice(("freeze", "freeze", "kill", "dismiss", "etcd", "nothing"))
        calm = [slot for slot in self.slots if slot not in busy]
        if what == "etcd" and None not in busy:
            self._running.etcd.kill()
            self._pending.append((now_s + self._rng.uniform(0.1, 3), "start_etcd", None, None))
        elif what in ("kill", "freeze", "dismiss") and len(calm) > self._rng.choice((1, 2, 3, 3)):
            slot = self._rng.choice(calm)
            disturbance = Disturbance(*slot, time.monotonic())
            self.disturbances.append(disturbance)
            process = self.slots[slot]
            os.kill(process.pid, SIGNALS[what])
            lasts_s = self._rng.choice(FREEZES_S) if what == "freeze" else self._rng.uniform(0.1, 1.0)
            self._pending.append((now_s + lasts_s, "thaw" if what == "freeze" else "restart", slot, disturbance))
            if what == "dismiss":
                self._running.processes.remove(process)
                self.leaving.append(process)
        else:
            return
        self.counts[what] += 1

    def _undo(self, what: str, slot: tuple[str, int] | None, disturbance: Disturbance | None) -> None:
        if slot is None:
            if not self._running.etcd.running:
                self._running.etcd.start()
            return
        if what == "thaw":
            os.kill(self.slots[slot].pid, signal.SIGCONT)
        else:
            while not self._running.etcd.running:  # a worker refuses to start without etcd, as it should
                self._running.etcd.start()
                self._pending = [each for each in self._pending if each[2] is not None]
            role: Role = "prefill" if slot[0] == "prefill" else "decode"
            self.slots[slot] = self._running.start_worker(role, *self._flags)
        if disturbance is not None:
            disturbance.ended_s = time.monotonic()


class Chaos:
    """A cluster and an undisturbed engine beside it."""

    def __init__(self, running: Cluster, undisturbed: Undisturbed, flags: tuple[str, ...]) -> None:
        self.running = running
        self._flags = flags
        self._undisturbed = undisturbed
        workers = running.processes[1:]
        self.slots = dict(zip((("prefill", 0), ("prefill", 1), ("decode", 0), ("decode", 1)), workers, strict=True))
        self.outcomes: Counter[str] = Counter()
        self.weather: Counter[str] = Counter()
        self._first_size: dict[int, tuple[int, int]] = {}

    def round(self, seed: int, count: int = 24, spread_s: float = 6.0) -> None:
        """Raises AssertionError naming every promise broken."""
        rng = random.Random(seed)
        asks = draw_asks(rng, count, self._undisturbed.vocab_size, spread_s)
        clients = [Client(f"127.0.0.1:{self.running.grpc_port}", ask) for ask in asks]
        storm = Storm(self.running, rng, self.slots, self._flags)
        for client in clients:
            client.start()
        ends_s = time.monotonic() + HANG_S
        try:
            for client in clients:
                client.join(max(ends_s - time.monotonic(), 0.1))
        finally:
            storm.stop()
        self.weather.update(storm.counts)
        answers = self._undisturbed.answers([(ask.prompt, ask.sampling) for ask in asks])
        problems = []
        for number, (client, expected) in enumerate(zip(clients, answers, strict=True)):
            problems += [f"request {number}: {problem}" for problem in self._judge(client, expected, storm)]
        problems += self._leftovers()
        problems += self._farewells(storm)
        assert not problems, f"seed {seed}: " + "\n".join(problems)

    def _judge(self, client: Client, expected: Expected, storm: Storm) -> Iterator[str]:
        ask, heard = client.ask, client.heard
        tokens, logprobs, finish = expected
        if not heard.done:
            yield f"hangs after {len(heard.tokens)} tokens"
            return
        if heard.tokens != tokens[: len(heard.tokens)]:
            wrong = next(i for i, token in enumerate(heard.tokens) if tokens[i : i + 1] != [token])
            yield f"token {wrong} differs: got {heard.tokens[wrong:][:5]}, expected {tokens[wrong:][:5]} {ask.sampling}"
        if ask.sampling.logprobs is not None and heard.logprobs != logprobs[: len(heard.tokens)]:
            yield "log probabilities differ"
        if ask.sampling.logprobs is None and heard.logprobs:
            yield "log probabilities nobody asked for"
        if heard.terminals:
            self.outcomes["finished" if heard.attempts == 1 else "finished after losses"] += 1
            if heard.terminals > 1 or (heard.error and not heard.left):
                yield f"{heard.terminals} messages at or after the end, error {heard.error!r}"
            if len(heard.tokens) != len(tokens) or heard.finish != int(finish):
                yield f"{len(heard.tokens)} tokens and {heard.finish}, expected {len(tokens)} and {finish}"
            usage = heard.usage
            if usage is None or (usage.prompt_tokens, usage.completion_tokens) != (len(ask.prompt), len(tokens)):
                yield f"usage {usage}"
        elif heard.left:
            self.outcomes["client left"] += 1
        elif not heard.error:
            yield f"ended silently after {len(heard.tokens)} tokens"
        else:
            self.outcomes[heard.error[:60]] += 1
            if not self._excusable(heard, storm):
                yield f"unexpected error {heard.error}"

    @staticmethod
    def _excusable(heard: Heard, storm: Storm) -> bool:
        """No decode worker was left, or the request had its share of losses."""
        if "no_decode_workers" in heard.error:
            return storm.disturbed("decode", heard.ended_s) == 2
        lost = storm.disturbed("decode", heard.ended_s) + storm.disturbed("prefill", heard.ended_s)
        return ("quarantined" in heard.error or "attempts failed" in heard.error) and lost > 0

    def _leftovers(self) -> Iterator[str]:
        self.running.wait_ready(2, 2)
        try:
            self.running.wait_idle()
            wait_for("every lease to end", lambda: not any(s.leases_active for s in self._stats()), 15)
        except AssertionError as error:
            yield f"{error}: {self._stats()}"
        for stats in self._stats():
            if stats.free_blocks != stats.num_blocks or stats.requests:
                yield f"{stats.worker_id} keeps {stats.num_blocks - stats.free_blocks} blocks, {stats.requests}"
        for slot, process in self.slots.items():
            watched = psutil.Process(process.pid)
            size = (watched.num_fds(), watched.num_threads())
            first = self._first_size.setdefault(process.pid, size)
            if max(now - before for now, before in zip(size, first, strict=True)) > LEAK_MARGIN:
                yield f"{slot} has {size} descriptors and threads, at first {first}"

    @staticmethod
    def _farewells(storm: Storm) -> Iterator[str]:
        """Who was asked to leave has left, in good order."""
        for process in storm.leaving:
            try:
                code = process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                yield f"worker {process.pid} ignored SIGTERM"
                continue
            if code:
                yield f"worker {process.pid} left with {code}"

    def _stats(self) -> list:
        return [self.running.stats(record) for record in self.running.records()]


@contextmanager
def chaos(model: Path, folder: Path, *flags: str) -> Iterator[Chaos]:
    """`flags` are for every worker."""
    everybody = (*WORKER_FLAGS, *TIMES, *flags)
    with cluster(model, folder, prefill=2, decode=2, worker_flags=everybody) as running:
        yield Chaos(running, Undisturbed(model), everybody)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--transport", default="shm,tcp")
    parser.add_argument("--keep", type=Path, help="folder for logs; default: a temporary one, removed at the end")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        model = write_tiny_model(folder / "tiny")
        with chaos(model, folder, "--kv-transport", given.transport) as weather:
            for seed in range(given.seed, given.seed + given.rounds):
                began_s = time.monotonic()
                weather.round(seed, given.requests)
                print(f"seed {seed}: kept all promises in {time.monotonic() - began_s:.1f} s", flush=True)
            print(dict(weather.weather), dict(weather.outcomes))


if __name__ == "__main__":
    main()
