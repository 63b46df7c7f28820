"""Choices, figures of the prompt and beams through whole clusters: exact, computed once, and not lost with a worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.cluster import ROOT, Cluster, cluster, wait_for

pytestmark = pytest.mark.slow

PROMPT = list(range(5, 105))
SCORED: dict[str, Any] = {"max_tokens": 4, "temperature": 0, "prompt_logprobs": 2, "logprobs": 2, "echo": True}
BEAMS: dict[str, Any] = {
    "max_tokens": 40,
    "use_beam_search": True,
    "beam_width": 4,
    "n": 3,
    "stop_token_ids": [9, 77, 130],
    "length_penalty": 0.6,
    "logprobs": 1,
}


def ask(running: Cluster, **body: Any) -> dict[str, Any]:
    payload = {"model": "tiny", "prompt": PROMPT, **body}
    response = httpx.post(f"{running.base_url}/v1/completions", json=payload, timeout=60)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.fixture(scope="module")
def local(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Decode computes everything itself."""
    with cluster(tiny_model, tmp_path_factory.mktemp("local"), prefill=0) as running:
        yield running


def prompt_tokens(running: Cluster) -> int:
    return sum(int(stats.prompt_tokens) for role in ("prefill", "decode") for stats in running.all_stats(role))  # type: ignore[arg-type]


def test_choices_share_one_computation_of_their_prompt(pair: Cluster, local: Cluster) -> None:
    prompt = [3 + 7 * i % 200 for i in range(330)]
    body = {"prompt": prompt, "max_tokens": 12, "temperature": 1.0, "seed": 8, "ignore_eos": True}
    before = prompt_tokens(pair)
    answer = ask(pair, n=5, **body)
    assert prompt_tokens(pair) - before <= 330 + 4 * 32, "the prompt was computed more than once"
    texts = [choice["text"] for choice in answer["choices"]]
    assert len(set(texts)) == 5
    assert texts[0] == ask(pair, **body)["choices"][0]["text"]
    assert texts == [choice["text"] for choice in ask(local, n=5, **body)["choices"]]
    best = ask(pair, n=2, best_of=5, logprobs=0, **body)["choices"]
    means = [sum(each["logprobs"]["token_logprobs"]) / 12 for each in ask(pair, n=5, logprobs=0, **body)["choices"]]
    ranked = sorted(range(5), key=lambda index: -means[index])
    assert [choice["text"] for choice in best] == [texts[index] for index in ranked[:2]]


def test_figures_of_a_prompt_are_the_same_cached_and_wherever_they_are_computed(pair: Cluster, local: Cluster) -> None:
    first, cached, elsewhere = (ask(running, **SCORED)["choices"][0] for running in (pair, pair, local))
    assert first == cached == elsewhere
    assert len(first["prompt_logprobs"]) == len(PROMPT)
    assert len(first["logprobs"]["token_logprobs"]) == len(PROMPT) + 4


def test_beams_are_the_same_handed_over_and_computed_in_one_place(pair: Cluster, local: Cluster) -> None:
    answer = ask(pair, **BEAMS)["choices"]
    assert answer == ask(local, **BEAMS)["choices"] == ask(pair, **BEAMS)["choices"]
    assert len({choice["text"] for choice in answer}) == 3
    scores = [choice["score"] for choice in answer]
    assert scores == sorted(scores, reverse=True)
    for choice in answer:
        figures = choice["logprobs"]["token_logprobs"]
        assert choice["score"] == pytest.approx(sum(figures) / len(figures) ** 0.6, rel=1e-9)
    pair.wait_idle()


def test_stop_strings_end_beams_alike_handed_over_and_in_one_place(pair: Cluster, local: Cluster) -> None:
    free = {**BEAMS, "stop_token_ids": [], "ignore_eos": True, "logprobs": None}
    text = ask(pair, **free)["choices"][0]["text"]
    stops = [text[4:6], text[9:12]]
    body = {**free, "stop": stops, "include_stop_str_in_output": True}
    answer = ask(pair, **body)["choices"]
    assert answer == ask(local, **body)["choices"] == ask(pair, **body)["choices"]
    ended = [choice for choice in answer if choice["finish_reason"] == "stop"]
    assert ended
    for choice in ended:
        [stop] = [stop for stop in stops if choice["text"].endswith(stop)]
        assert choice["text"].find(stop) == len(choice["text"]) - len(stop), "it went on behind its end"
    payload = {"model": "tiny", "prompt": PROMPT, **body, "stream": True}
    with httpx.stream("POST", f"{pair.base_url}/v1/completions", json=payload, timeout=60) as response:
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert events.pop() == "[DONE]"
    assert [choice for event in events for choice in json.loads(event)["choices"]] == answer
    pair.wait_idle()


def test_a_beam_search_whose_worker_is_killed_gives_the_same_answers(
    local: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    body = {**BEAMS, "max_tokens": 600, "stop_token_ids": [], "ignore_eos": True, "beam_width": 6}
    expected = ask(local, **body)["choices"]
    with cluster(tiny_model, tmp_path, prefill=1, decode=2) as running:
        answers: list[dict[str, Any]] = []
        thread = threading.Thread(target=lambda: answers.append(ask(running, **body)))
        thread.start()

        def victim() -> int:
            busy = [stats for stats in running.all_stats("decode") if stats.generated_tokens > 60]
            return int(busy[0].pid) if busy else 0

        os.kill(wait_for("a search under way", victim), signal.SIGKILL)
        assert not answers, "the search was over before its worker was killed"
        thread.join(60)
    assert answers
    assert answers[0]["choices"] == expected


def test_the_terminal_shows_several_answers(pair: Cluster) -> None:
    words = ["complete", "abc", "--url", pair.base_url, "--max-tokens", "5"]
    for more, shown in ((["--n", "2", "--temperature", "1"], "2 of 2"), (["--n", "2", "--beam-width", "3"], "score -")):
        done = subprocess.run(
            [sys.executable, "-m", "splice", *words, *more], capture_output=True, text=True, cwd=ROOT, check=False
        )
        assert done.returncode == 0, done.stderr
        assert shown in done.stdout
