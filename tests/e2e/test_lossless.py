"""Promise 2: any one process may die at any instant; no client sees a lost, repeated or reordered token, or a hang."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import httpx
import pytest

from tests.e2e.cluster import Answer, Cluster, cluster, complete, wait_for

pytestmark = pytest.mark.slow

PROMPT = list(range(40, 140))
STREAM: dict[str, object] = {"max_tokens": 400, "temperature": 0.7, "seed": 99, "ignore_eos": True}


@pytest.fixture(scope="module")
def reference(pair: Cluster) -> str:
    return complete(pair, PROMPT, **STREAM).text


def owner_of_the_only_request(running: Cluster, role: str) -> int:
    """Pid of the worker of this role that holds a request right now."""
    owners = [stats for stats in running.all_stats(role) if stats.requests]
    assert len(owners) == 1, f"{len(owners)} workers own the request"
    return int(owners[0].pid)


def test_killing_decode_midstream_loses_and_repeats_no_token(reference: str, tiny_model: Path, tmp_path: Path) -> None:
    killed: list[tuple[int, int]] = []

    with cluster(tiny_model, tmp_path, prefill=1, decode=2) as running:

        def kill(count: int, _: Answer) -> None:
            if count == 20:
                pid = owner_of_the_only_request(running, "decode")
                os.kill(pid, signal.SIGKILL)
                killed.append((count, pid))

        answer = complete(running, PROMPT, kill, **STREAM)
    assert killed, "no worker was killed"
    assert answer.text == reference
    assert answer.usage["completion_tokens"] == 400
    assert answer.receipt["attempts"] == 2, "the victim had already finished"
    assert answer.finish == "length"
    assert answer.done


def test_killing_prefill_while_it_computes_changes_nothing(tiny_model: Path, tmp_path: Path) -> None:
    prompt = [5 + i % 200 for i in range(1900)]
    body: dict[str, object] = {"max_tokens": 60, "temperature": 0, "ignore_eos": True}
    with cluster(
        tiny_model,
        tmp_path,
        prefill=2,
        decode=1,
        prefill_flags=("--max-num-batched-tokens", "32", "--max-num-seqs", "1"),
    ) as running:
        answers: list[Answer] = []
        client = threading.Thread(target=lambda: answers.append(complete(running, prompt, **body)))
        client.start()

        def computing() -> int | None:
            for stats in running.all_stats("prefill"):
                for request in stats.requests:
                    if 0 < request.num_computed_tokens < request.num_tokens:
                        return int(stats.pid)
            return None

        os.kill(wait_for("a prompt half computed", computing), signal.SIGKILL)
        client.join(60)
        expected = complete(running, prompt, **body)
    assert answers[0].receipt["attempts"] == 2
    assert answers[0].text == expected.text
    assert answers[0].done


def test_without_prefill_workers_decode_prefills_itself_and_running_streams_go_on(
    reference: str, tiny_model: Path, tmp_path: Path
) -> None:
    with cluster(tiny_model, tmp_path) as running:
        [prefill] = [record for record in running.records() if record.role == "prefill"]

        def kill(count: int, _: Answer) -> None:
            if count == 10:
                os.kill(prefill.pid, signal.SIGKILL)

        assert complete(running, PROMPT, kill, **STREAM).text == reference
        after = complete(running, PROMPT, **STREAM)
    assert after.text == reference
    assert after.receipt["prefill_worker"] == ""


def test_without_decode_workers_the_client_gets_a_clear_error(tiny_model: Path, tmp_path: Path) -> None:
    with cluster(tiny_model, tmp_path) as running:
        [decode] = [record for record in running.records() if record.role == "decode"]

        def kill(count: int, _: Answer) -> None:
            if count == 10:
                os.kill(decode.pid, signal.SIGKILL)

        cut = complete(running, PROMPT, kill, **STREAM)
        refused = complete(running, PROMPT, **STREAM)
    assert cut.error is not None
    assert cut.error["code"] == "no_decode_workers"
    assert not cut.done, "a stream that failed must not end with [DONE]"
    assert refused.error is not None
    assert refused.error["code"] == "no_decode_workers"


def test_a_client_that_leaves_frees_its_blocks(pair: Cluster) -> None:
    body = {"model": "tiny", "prompt": PROMPT, "stream": True, **STREAM, "max_tokens": 1500}
    with httpx.stream("POST", f"{pair.base_url}/v1/completions", json=body, timeout=30) as response:
        lines = response.iter_lines()
        for _ in range(10):
            next(lines)
        assert any(stats.running for stats in pair.all_stats("decode"))
    pair.wait_idle()
    assert all(
        stats.free_blocks == stats.num_blocks for role in ("prefill", "decode") for stats in pair.all_stats(role)
    )


def test_losing_etcd_disturbs_no_stream_and_workers_come_back_when_it_does(
    reference: str, tiny_model: Path, tmp_path: Path
) -> None:
    with cluster(tiny_model, tmp_path) as running:

        def kill(count: int, _: Answer) -> None:
            if count == 10:
                running.etcd.kill()

        assert complete(running, PROMPT, kill, **STREAM).text == reference
        assert complete(running, PROMPT, **STREAM).text == reference
        running.etcd.start()
        wait_for("both workers to register again", lambda: len(running.records()) == 2, 30)
        assert complete(running, PROMPT, **STREAM).text == reference
