"""A device that fails ends one worker: its requests go on elsewhere, token for token, and the cluster serves on."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest

from tests.e2e.cluster import Answer, Cluster, cluster, complete, wait_for

pytestmark = pytest.mark.slow

PROMPTS = (list(range(40, 140)), list(range(90, 200)))
STREAM: dict[str, object] = {"max_tokens": 400, "temperature": 0.7, "seed": 99, "ignore_eos": True}
EX_SOFTWARE = 70


def expect_end(running: Cluster, lost: subprocess.Popen[bytes], log_name: str) -> None:
    """Of the process, said why, and of its registration."""
    assert lost.wait(30) == EX_SOFTWARE, running.logs()
    log = (running.folder / f"{log_name}.log").read_text()
    assert "device_lost" in log
    assert "others go on with its requests" in log
    wait_for("its registration to end", lambda: lost.pid not in [record.pid for record in running.records()], 30)


def test_a_decode_worker_whose_device_fails_loses_and_repeats_no_token(
    pair: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    """Two streams at once, of which the router gives one to each decode worker; which of them breaks is its choice."""
    references = [complete(pair, prompt, **STREAM).text for prompt in PROMPTS]
    answers: dict[int, Answer] = {}
    with cluster(tiny_model, tmp_path) as running:
        log_name = f"decode-{len(running.processes)}"
        lost = running.start_worker("decode", "--fault", "engine.device_lost@60")
        running.wait_ready(1, 2)

        def second() -> None:
            answers[1] = complete(running, PROMPTS[1], **STREAM)

        client = threading.Thread(target=second)
        answers[0] = complete(running, PROMPTS[0], lambda count, _: client.start() if count == 1 else None, **STREAM)
        client.join(60)
        expect_end(running, lost, log_name)
        after = complete(running, PROMPTS[0], **STREAM)
    assert [answers[index].text for index in range(len(PROMPTS))] == references
    assert all(answer.done and answer.usage["completion_tokens"] == 400 for answer in answers.values())
    assert sorted(int(answer.receipt["attempts"]) for answer in answers.values()) == [1, 2]
    assert after.text == references[0]


def test_a_prefill_worker_whose_device_fails_hands_over_nothing_it_computed_then(
    pair: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    prompt = [5 + i % 200 for i in range(1500)]
    body: dict[str, object] = {"max_tokens": 40, "temperature": 0, "ignore_eos": True}
    expected = complete(pair, prompt, **body)
    flags = ("--max-num-batched-tokens", "32", "--max-num-seqs", "1", "--fault", "engine.device_lost@20")
    with cluster(tiny_model, tmp_path, prefill_flags=flags) as running:
        [lost] = [record.pid for record in running.records() if record.role == "prefill"]
        answer = complete(running, prompt, **body)
        [process] = [process for process in running.processes if process.pid == lost]
        expect_end(running, process, "prefill-1")
    assert answer.text == expected.text
    assert answer.receipt["attempts"] == 2
    assert answer.done
