"""`splice serve --prefill 0`: one pool that computes prompts and answers, without a hand-off."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.e2e.cluster import ROOT, Cluster, complete, free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

PROMPTS = [list(range(5, 5 + length)) for length in (3, 31, 100)]
SAMPLINGS: list[dict[str, object]] = [{"temperature": 0}, {"temperature": 0.9, "top_p": 0.9, "seed": 77}]


@pytest.fixture(scope="module")
def colocated(tiny_model: Path, pair: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The whole of it under one command, one decode worker and no prefill pool."""
    folder = tmp_path_factory.mktemp("colocated")
    flags = ["--cluster", f"colocated-{free_port()}", "--run-dir", str(folder / "run")]
    command = [sys.executable, "-m", "splice", "serve", str(tiny_model), "--detach", "--prefill", "0", "--decode", "1"]
    command += ["--served-model-name", "tiny", "--port", "0", "--grpc-port", "0", "--kv-cache-memory", "64M", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    try:
        assert done.returncode == 0, done.stderr
        state = json.loads((folder / "run" / "state.json").read_text())
        yield replace(pair, http_port=state["http_port"], folder=folder, processes=[])
    finally:
        down = [sys.executable, "-m", "splice", "down", *flags]
        ended = subprocess.run(down, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False)
    assert ended.returncode == 0, ended.stderr
    assert not (folder / "run").exists(), ended.stderr


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: f"{len(prompt)} tokens")
def test_its_tokens_are_those_of_separate_pools_and_its_receipt_names_no_hand_off(
    colocated: Cluster, pair: Cluster, prompt: list[int], sampling: dict[str, object]
) -> None:
    asked = {"max_tokens": 60, "ignore_eos": True, **sampling}
    alone, handed_over = complete(colocated, prompt, **asked), complete(pair, prompt, **asked)
    assert alone.done
    assert alone.text == handed_over.text
    assert handed_over.receipt["transport"] == "shm"
    assert alone.receipt["transport"] == alone.receipt["prefill_worker"] == ""
    assert str(alone.receipt["decode_worker"]).startswith("decode-")
    assert alone.receipt["kv_bytes"] == alone.receipt["kv_blocks"] == alone.receipt["exposed_s"] == 0


def test_its_worker_runs_at_the_priority_of_everyone_else(colocated: Cluster) -> None:
    state = json.loads((colocated.folder / "run" / "state.json").read_text())
    [worker] = [psutil.Process(each["pid"]) for each in state["processes"] if each["name"].startswith("decode-")]
    assert worker.nice() == psutil.Process().nice()
