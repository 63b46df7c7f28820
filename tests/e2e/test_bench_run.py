"""`splice bench` against a whole cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from splice.bench.result import Result, read_result
from tests.e2e.cluster import ROOT, Cluster

pytestmark = pytest.mark.slow

WORKLOAD = """
name = "small"
title = "small prompts that share a beginning"
requests = 12
output_tokens = 16
token_ids = [5, 250]
arrivals = { kind = "closed", streams = 4 }
prompt = { kind = "shared_prefix", prefix_tokens = 64, tokens = 8 }
slo = { e2e_ms = 60000.0 }
"""


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "splice", "bench", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_COLOR": "1"},
        timeout=100,
        check=False,
    )


@pytest.fixture(scope="module")
def measured(pair: Cluster, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("bench")
    (folder / "w.toml").write_text(WORKLOAD)
    output = folder / "r.json"
    decode = next(record for record in pair.records() if record.role == "decode")
    done = bench(
        "run", "--url", pair.base_url, "--workload", str(folder / "w.toml"), "--repeats", "2", "-o", str(output),
        "--server-pid", str(decode.pid), "--model-file", str(tiny_model),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return read_result(output)


def test_every_request_is_answered_in_full_and_every_token_was_seen_coming(measured: Result) -> None:
    (series,) = measured.series
    samples = [sample for repeat in series.repeats for sample in repeat.samples]
    assert len(samples) == 24
    assert {sample.error for sample in samples} == {None}
    assert {(sample.prompt_tokens, sample.output_tokens, sample.finish) for sample in samples} == {(72, 16, "length")}
    for repeat in series.repeats:
        summary = repeat.summary
        assert 0 < summary.pieces_per_token <= 1
        assert summary.cached_share > 0.3
        assert summary.goodput_share == 1.0
        assert summary.ttft_ms is not None
        assert summary.e2e_ms is not None
        assert 0 < summary.ttft_ms.p50 < summary.e2e_ms.p50
        assert (repeat.resources.cpu_s or 0) > 0
        assert (repeat.resources.pss_bytes or 0) > 10_000_000


def test_the_same_prompts_get_the_same_answers_measured_again(measured: Result, pair: Cluster, tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_text(WORKLOAD)
    output = tmp_path / "again.json"
    done = bench(
        "run", "--url", pair.base_url, "--workload", str(tmp_path / "w.toml"), "--repeats", "1", "-o", str(output)
    )
    assert done.returncode == 0, done.stderr
    first, again = measured.series[0].repeats[0], read_result(output).series[0].repeats[0]

    def digests(samples: object) -> dict[int, str]:
        return {sample.index: sample.text_digest for sample in samples}  # type: ignore[attr-defined]

    assert digests(first.samples) == digests(again.samples)


def test_a_refused_request_is_told_in_the_servers_words(pair: Cluster, tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_text(WORKLOAD.replace("[5, 250]", "[5, 9000]"))
    done = bench("run", "--url", pair.base_url, "--workload", str(tmp_path / "w.toml"))
    assert done.returncode == 2
    assert "HTTP 400" in done.stderr
    assert "not a token id of this model" in done.stderr


def test_an_open_loop_sends_at_its_own_times(pair: Cluster, tmp_path: Path) -> None:
    output = tmp_path / "open.json"
    done = bench(
        "run", "--url", pair.base_url, "--workload", "poisson", "--rate", "40", "--requests", "20", "--repeats", "1",
        "--token-ids", "5:250", "-o", str(output),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (repeat,) = read_result(output).series[0].repeats
    due = [sample.due_us for sample in repeat.samples]
    assert due[0] == 0
    assert due == sorted(due)
    assert 0.1e6 < due[-1] < 2e6
