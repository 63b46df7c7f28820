"""Promise 1: the tokens of a request depend on nothing but model, prompt, parameters and seed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.cluster import Answer, Cluster, cluster, complete

pytestmark = pytest.mark.slow

PROMPT = list(range(5, 105))
SAMPLINGS: dict[str, dict[str, object]] = {
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 0.8, "top_p": 0.95, "seed": 1234},
}


def ask(running: Cluster, sampling: str, prompt: list[int] | None = None, **body: object) -> Answer:
    options = {"max_tokens": 200, "ignore_eos": True, **SAMPLINGS[sampling], **body}
    return complete(running, prompt or PROMPT, **options)


@pytest.fixture(scope="module")
def local(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same requests on a cluster without a prefill worker: decode computes everything itself."""
    with cluster(tiny_model, tmp_path_factory.mktemp("local"), prefill=0) as running:
        answers = {name: ask(running, name) for name in SAMPLINGS}
    assert all(answer.receipt["prefill_worker"] == "" for answer in answers.values())
    return {name: answer.text for name, answer in answers.items()}


@pytest.mark.parametrize("transport", ["shm", "tcp", "ucx"])
def test_text_is_the_same_over_every_transport_and_prefilled_locally(
    transport: str, local: dict[str, str], tiny_model: Path, tmp_path: Path
) -> None:
    with cluster(tiny_model, tmp_path, worker_flags=("--kv-transport", transport)) as running:
        for name, expected in local.items():
            answer = ask(running, name)
            assert answer.receipt["transport"] == transport
            assert answer.receipt["transport_fallbacks"] == 0
            assert answer.receipt["kv_bytes"] > 0
            assert answer.text == expected


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_text_is_the_same_alone_and_beside_fifteen_others(sampling: str, local: dict[str, str], pair: Cluster) -> None:
    others = [[7 + i, *range(20 + i, 60 + 3 * i)] for i in range(15)]
    with ThreadPoolExecutor(16) as pool:
        crowd = [pool.submit(ask, pair, sampling, prompt) for prompt in others]
        beside = pool.submit(ask, pair, sampling)
        texts = [answer.result() for answer in crowd]
    assert all(answer.finish == "length" for answer in texts)
    rows = max(stats.max_batch_rows for stats in pair.all_stats("decode"))
    assert rows >= 8, f"the widest step had {rows} rows: nothing was batched"
    assert beside.result().text == local[sampling]


@pytest.mark.parametrize("host_blocks", [0, 64], ids=["recomputed", "swapped"])
def test_text_is_the_same_when_memory_is_scarce(
    host_blocks: int, local: dict[str, str], tiny_model: Path, tmp_path: Path
) -> None:
    scarce = ("--max-model-len", "320", "--num-kv-blocks", "14", "--num-host-blocks", str(host_blocks))
    prompts = [[7 + i, *range(20 + i, 60 + 3 * i)] for i in range(5)]
    with cluster(tiny_model, tmp_path, worker_flags=scarce) as running, ThreadPoolExecutor(6) as pool:
        crowd = [pool.submit(ask, running, "sampled", prompt) for prompt in prompts]
        beside = pool.submit(ask, running, "sampled")
        assert all(answer.result().finish == "length" for answer in crowd)
        assert beside.result().text == local["sampled"]
        assert sum(stats.preemptions for stats in running.all_stats("decode")) > 0


def test_a_cached_prompt_gives_the_same_text(pair: Cluster, local: dict[str, str]) -> None:
    first, second = ask(pair, "greedy"), ask(pair, "greedy")
    assert second.usage["prompt_tokens_details"]["cached_tokens"] > 0
    assert first.text == second.text == local["greedy"]


def test_a_drawn_seed_is_reported_and_repeats_the_answer(pair: Cluster) -> None:
    first = complete(pair, PROMPT, max_tokens=32, temperature=1.0, ignore_eos=True)
    again = complete(pair, PROMPT, max_tokens=32, temperature=1.0, ignore_eos=True, seed=int(first.receipt["seed"]))
    other = complete(pair, PROMPT, max_tokens=32, temperature=1.0, ignore_eos=True)
    assert first.text == again.text != other.text
