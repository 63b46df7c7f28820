"""The KV hand-off is real: other process, counted bytes, checked by digest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster, cluster, complete

pytestmark = pytest.mark.slow

PROMPT = list(range(30, 200))
GREEDY: dict[str, object] = {"max_tokens": 40, "temperature": 0, "ignore_eos": True}


def test_the_receipt_names_two_processes_the_transport_and_the_bytes_moved(pair: Cluster) -> None:
    records = {record.worker_id: record for record in pair.records()}
    answer = complete(pair, PROMPT, **GREEDY)
    prefill = records[str(answer.receipt["prefill_worker"])]
    decode = records[str(answer.receipt["decode_worker"])]
    assert (prefill.role, decode.role) == ("prefill", "decode")
    assert prefill.pid != decode.pid
    assert answer.receipt["transport"] == "shm"
    assert answer.receipt["transport_fallbacks"] == 0
    blocks = int(answer.receipt["kv_blocks"])
    assert 0 < blocks <= 6
    assert answer.receipt["kv_bytes"] == blocks * decode.layout.block_bytes
    assert answer.receipt["ttft_s"] > 0
    # Tokens of so small a model may be seen several at once, and half of the gaps be none.
    assert answer.receipt["itl_p95_s"] > 0
    assert answer.receipt["exposed_s"] >= 0


@pytest.mark.parametrize("transport", ["shm", "tcp", "ucx"])
def test_a_flipped_kv_byte_is_caught_and_fetched_again(
    transport: str, pair: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    expected = complete(pair, PROMPT, **GREEDY).text
    flags = ("--kv-transport", transport)
    with cluster(tiny_model, tmp_path, worker_flags=flags, decode_flags=("--fault", "kv.flip_byte")) as running:
        answer = complete(running, PROMPT, **GREEDY)
        [stats] = running.all_stats("decode")
    assert answer.text == expected
    assert answer.receipt["blocks_refetched"] == 1
    assert answer.receipt["attempts"] == 1
    assert stats.digest_mismatches == 1


def test_the_same_flip_would_change_the_text_if_no_digest_were_checked(
    pair: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    expected = complete(pair, PROMPT, **GREEDY).text
    with cluster(tiny_model, tmp_path, decode_flags=("--fault", "kv.flip_byte_unchecked")) as running:
        answer = complete(running, PROMPT, **GREEDY)
    assert answer.receipt["blocks_refetched"] == 0
    assert answer.text != expected


@pytest.mark.parametrize("difference", ["weights", "arithmetic"])
def test_workers_that_compute_another_thing_are_never_paired(
    difference: str, pair: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    from tests.tiny_model import write_tiny_model

    with cluster(tiny_model, tmp_path, prefill=0) as running:
        if difference == "weights":
            other = write_tiny_model(tmp_path / "other", seed=1)
            running.start_worker("prefill", "--served-model-name", "tiny", model=other)
        else:
            running.start_worker("prefill", "--activations", "float32")
        running.wait_ready(1, 1)
        answer = complete(running, PROMPT, **GREEDY)
        assert answer.receipt["prefill_worker"] == ""
        assert answer.text == complete(pair, PROMPT, **GREEDY).text
