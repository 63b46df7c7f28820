"""A whole Splice cluster of plain processes for tests: real etcd, router and workers, each started as a user would."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc
import httpx

from membership.client import EtcdClient
from membership.keys import workers_prefix
from membership.server import EtcdServer
from wire.v1 import worker_pb2, worker_pb2_grpc
from wire.worker_record import Role, WorkerRecord, decode_record

START_S = 60.0
ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")


def wait_for(what: str, probe: Callable[[], T | None], timeout_s: float = START_S) -> T:
    """Polls until `probe` returns something true; AssertionError naming `what` after `timeout_s`."""
    ends = time.monotonic() + timeout_s
    while time.monotonic() < ends:
        if found := probe():
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {timeout_s} s in vain for {what}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Cluster:
    """Processes of one cluster. `worker` and `router` start more; `stop` ends all and checks that they left."""

    model: Path
    folder: Path
    name: str
    etcd: EtcdServer
    http_port: int = field(default_factory=free_port)
    grpc_port: int = field(default_factory=free_port)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    worker_program: str = "splice"
    """The module that workers run."""

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def start_worker(self, role: Role, *flags: str, model: Path | None = None) -> subprocess.Popen[bytes]:
        arguments = ["worker", "--role", role, "--model", str(model or self.model), "--port", "0"]
        return self._start(
            f"{role}-{len(self.processes)}", *arguments, *self._common(), *flags, program=self.worker_program
        )

    def start_router(self, *flags: str) -> subprocess.Popen[bytes]:
        ports = ["--port", str(self.http_port), "--grpc-port", str(self.grpc_port)]
        return self._start(f"router-{len(self.processes)}", "router", *ports, *self._common(), *flags)

    def records(self) -> list[WorkerRecord]:
        """What etcd holds right now."""

        async def read() -> list[WorkerRecord]:
            client = EtcdClient(self.etcd.endpoint)
            try:
                found = await client.list(workers_prefix(self.name))
                return [decode_record(entry.value) for entry in found.entries]
            finally:
                await client.close()

        return asyncio.run(read())

    def wait_ready(self, prefill: int, decode: int) -> None:
        """Until etcd names this many workers and the router serves with that many of each role."""
        wanted = {"prefill": prefill, "decode": decode}

        def ready() -> bool:
            self.check_alive()
            try:
                answer = httpx.get(f"{self.base_url}/ready", timeout=2)
            except httpx.HTTPError:
                return False
            workers = answer.json().get("workers", {}) if answer.status_code == 200 else {}
            return {role: workers.get(role, 0) for role in wanted} == wanted

        wait_for(f"{prefill} prefill and {decode} decode workers", ready)

    def check_alive(self) -> None:
        for process in self.processes:
            if process.poll() not in (None, -signal.SIGKILL):
                raise AssertionError(f"{process.args} ended with {process.returncode}: {self.logs()}")

    def stats(self, record: WorkerRecord) -> worker_pb2.WorkerStats:
        with grpc.insecure_channel(record.endpoint) as channel:
            return worker_pb2_grpc.WorkerStub(channel).GetStats(worker_pb2.GetStatsRequest(), timeout=10)

    def all_stats(self, role: Role) -> list[worker_pb2.WorkerStats]:
        return [self.stats(record) for record in self.records() if record.role == role]

    def wait_idle(self) -> None:
        """Until no worker runs, holds or drains anything."""

        def idle() -> bool:
            stats = [self.stats(record) for record in self.records()]
            return all(not (s.running or s.waiting or s.held_blocks or s.draining_blocks) for s in stats)

        wait_for("all KV blocks to be free again", idle, 30)

    def logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in sorted(self.folder.glob("*.log"))
        )

    def stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise AssertionError(f"{process.args} ignored SIGTERM: {self.logs()}") from None

    def _common(self) -> list[str]:
        return ["--etcd-endpoints", self.etcd.endpoint, "--cluster", self.name]

    def _start(self, log_name: str, *arguments: str, program: str = "splice") -> subprocess.Popen[bytes]:
        with (self.folder / f"{log_name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", program, *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
        self.processes.append(process)
        return process


@contextmanager
def cluster(
    model: Path,
    folder: Path,
    *,
    prefill: int = 1,
    decode: int = 1,
    worker_flags: tuple[str, ...] = (),
    decode_flags: tuple[str, ...] = (),
    prefill_flags: tuple[str, ...] = (),
    router_flags: tuple[str, ...] = (),
    worker_program: str = "splice",
) -> Iterator[Cluster]:
    """A running cluster; ended, and checked to have ended, on the way out."""
    folder.mkdir(parents=True, exist_ok=True)
    etcd = EtcdServer(folder / "etcd")
    etcd.start()
    running = Cluster(model, folder, f"test-{free_port()}", etcd, worker_program=worker_program)
    try:
        running.start_router(*router_flags)
        for _ in range(prefill):
            running.start_worker("prefill", *worker_flags, *prefill_flags)
        for _ in range(decode):
            running.start_worker("decode", *worker_flags, *decode_flags)
        running.wait_ready(prefill, decode)
        yield running
    finally:
        try:
            running.stop()
        finally:
            etcd.stop()


@dataclass
class Answer:
    """One streamed completion as a client saw it."""

    tokens: list[str] = field(default_factory=list)
    finish: str | None = None
    receipt: dict[str, object] = field(default_factory=dict)
    usage: dict[str, object] = field(default_factory=dict)
    error: dict[str, object] | None = None
    done: bool = False

    @property
    def text(self) -> str:
        return "".join(self.tokens)


def complete(
    running: Cluster, prompt: str | list[int], on_delta: Callable[[int, Answer], None] = lambda *_: None, **body: object
) -> Answer:
    """Streams /v1/completions; `on_delta(count, answer)` runs after each chunk that carried text."""
    answer = Answer()
    payload = {"model": "tiny", "prompt": prompt, "stream": True, "stream_options": {"include_usage": True}, **body}
    with httpx.stream(
        "POST", f"{running.base_url}/v1/completions", json=payload, headers={"x-splice-receipt": "1"}, timeout=60
    ) as response:
        if response.status_code != 200:
            answer.error = json.loads(response.read())["error"]
            return answer
        for line in response.iter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                answer.done = True
                continue
            _take(answer, json.loads(line[6:]), on_delta)
    return answer


def _take(answer: Answer, chunk: dict[str, object], on_delta: Callable[[int, Answer], None]) -> None:
    answer.error = chunk.get("error", answer.error)  # type: ignore[assignment]
    answer.usage = chunk.get("usage") or answer.usage  # type: ignore[assignment]
    answer.receipt = chunk.get("splice_receipt") or answer.receipt  # type: ignore[assignment]
    for choice in chunk.get("choices", ()):  # type: ignore[attr-defined]
        answer.finish = choice["finish_reason"] or answer.finish
        if choice["text"]:
            answer.tokens.append(choice["text"])
            on_delta(len(answer.tokens), answer)
