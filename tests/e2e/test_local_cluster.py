"""`splice serve` as a user runs it: etcd, Ray, router, two workers of each role; one command, then nothing left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import openai
import psutil
import pytest

from tests.e2e.cluster import ROOT, free_port, wait_for
from wire.v1 import inference_pb2, inference_pb2_grpc, sampling_pb2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

PROMPT = "The quick brown fox jumps over the lazy dog, and then"
STREAM: dict[str, Any] = {"max_tokens": 300, "temperature": 0, "seed": 3, "extra_body": {"ignore_eos": True}}


@dataclass
class Served:
    process: subprocess.Popen[bytes]
    run_dir: Path
    cluster: str
    log: Path

    @property
    def state(self) -> dict[str, Any]:
        return json.loads((self.run_dir / "state.json").read_text())

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.state['http_port']}/v1", api_key="none", max_retries=0)

    def status(self) -> dict[str, Any]:
        command = [sys.executable, "-m", "splice", "status", "--json"]
        command += ["--cluster", self.cluster, "--run-dir", str(self.run_dir)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def workers(self, role: str) -> dict[str, dict[str, Any]]:
        """By worker id, those that answer."""
        found = self.status()["workers"]
        return {each["worker_id"]: each for each in found if each["role"] == role and each["answers"]}

    def ray_process(self, name: str) -> psutil.Process:
        marked = [
            process
            for process in psutil.process_iter()
            if process.name().startswith(name) and any(self.state["own_ray_dir"] in word for word in process.cmdline())
        ]
        assert len(marked) == 1, f"{len(marked)} processes called {name}"
        return marked[0]


@pytest.fixture(scope="module")
def served(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    run_dir, log, cluster = folder / "run", folder / "serve.log", f"ray-{free_port()}"
    command = [sys.executable, "-m", "splice", "serve", str(tiny_model), "--prefill", "2", "--decode", "2"]
    command += ["--served-model-name", "tiny", "--port", "0", "--grpc-port", "0", "--cluster", cluster]
    command += ["--run-dir", str(run_dir), "--kv-cache-memory", "64M"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, start_new_session=True)
    running = Served(process, run_dir, cluster, log)

    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        return (run_dir / "state.json").exists() and running.state["ready"]

    try:
        wait_for("the cluster to be ready", ready, 120)
        yield running
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def stream(client: openai.OpenAI, at: dict[int, Any] | None = None) -> str:
    """Text of one streamed completion; `at[n]()` is called after the n-th chunk with text."""
    text, count = "", 0
    for chunk in client.completions.create(model="tiny", prompt=PROMPT, stream=True, **STREAM):
        if chunk.choices and chunk.choices[0].text:
            text, count = text + chunk.choices[0].text, count + 1
            if at and count in at:
                at[count]()
    return text


def test_status_names_two_workers_of_each_role(served: Served) -> None:
    status = served.status()
    roles = [worker["role"] for worker in status["workers"]]
    assert sorted(roles) == ["decode", "decode", "prefill", "prefill"]
    assert len({worker["incarnation"] for worker in status["workers"]}) == 4
    assert len({worker["pid"] for worker in status["workers"]}) == 4
    assert all(worker["answers"] and worker["free_blocks"] == worker["num_blocks"] for worker in status["workers"])
    assert status["etcd_error"] is None


def test_the_openai_client_and_a_plain_grpc_client_get_the_same_answer(served: Served) -> None:
    whole = served.client.completions.create(model="tiny", prompt=PROMPT, **STREAM)
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 300
    assert stream(served.client) == whole.choices[0].text
    with grpc.insecure_channel(f"127.0.0.1:{served.state['grpc_port']}") as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        [model] = stub.ListModels(inference_pb2.ListModelsRequest(), timeout=10).models
        assert (model.id, model.prefill_workers, model.decode_workers) == ("tiny", 2, 2)
        request = inference_pb2.GenerateRequest(
            model="tiny",
            text=PROMPT,
            sampling=sampling_pb2.SamplingParams(max_tokens=300, temperature=0, seed=3, ignore_eos=True),
        )
        answer = list(stub.Generate(request, timeout=60))
    assert "".join(part.text for part in answer) == whole.choices[0].text
    assert answer[-1].finish == sampling_pb2.FINISH_REASON_LENGTH
    assert answer[-1].usage.completion_tokens == 300
    assert answer[-1].receipt.transport == "shm"


def test_a_second_serve_of_the_same_cluster_is_refused(served: Served, tiny_model: Path) -> None:
    command = [sys.executable, "-m", "splice", "serve", str(tiny_model), "--port", "0", "--grpc-port", "0"]
    command += ["--cluster", served.cluster, "--run-dir", str(served.run_dir)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "already running" in " ".join(done.stderr.split())
    assert served.process.poll() is None


def test_ray_restarts_a_killed_worker_under_a_new_incarnation(served: Served) -> None:
    before = served.workers("prefill")
    victim = next(iter(before.values()))
    os.kill(victim["pid"], signal.SIGKILL)

    def replaced() -> bool:
        now = served.workers("prefill")
        return len(now) == 2 and victim["incarnation"] not in {worker["incarnation"] for worker in now.values()}

    wait_for("Ray to restart the worker", replaced, 90)
    assert stream(served.client) == stream(served.client)


def answering_pids(served: Served) -> set[int]:
    """Of workers whose lease has not ended; one that was killed a moment ago still has its own."""
    return {worker["pid"] for worker in served.status()["workers"] if worker["answers"]}


def test_killing_gcs_server_under_load_disturbs_no_stream(served: Served) -> None:
    expected = stream(served.client)
    pids = answering_pids(served)
    assert len(pids) == 4
    gcs = served.ray_process("gcs_server")
    assert stream(served.client, {20: gcs.kill}) == expected
    gcs.wait(10)
    ends = time.monotonic() + 8
    while time.monotonic() < ends:  # `ray start --block` would have ended its actors within two seconds
        assert stream(served.client) == expected
    assert answering_pids(served) == pids


def test_ctrl_c_ends_everything_and_leaves_nothing(served: Served) -> None:
    state = served.state
    pids = {worker["pid"] for worker in served.status()["workers"]} | {each["pid"] for each in state["processes"]}
    ours = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]  # one worker was killed further up
    ours += [served.ray_process("raylet")]
    assert len(ours) >= 6
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(60) == 0, served.log.read_text()
    alive = [process for process in ours if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not alive, alive
    assert not Path(state["own_ray_dir"]).exists()
    assert not served.run_dir.exists()
