"""What cannot start says what is wrong and what to do, with exit code 2 and no traceback."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import ROOT, free_port

pytestmark = pytest.mark.slow


def run(*arguments: str) -> str:
    """What `splice ...` says on its way to exit code 2, as one line."""
    command = [sys.executable, "-m", "splice", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 2, said
    assert "Traceback" not in said
    return said


@pytest.fixture
def copied_model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield int(taken.getsockname()[1])


def worker(model: Path | str, *flags: str) -> str:
    return run("worker", "--role", "decode", "--model", str(model), *flags)


def test_a_damaged_gguf_is_named(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + bytes(100))
    said = worker(damaged)
    assert "bad_model_file" in said
    assert "damaged.gguf" in said


def test_truncated_safetensors_are_named(copied_model: Path) -> None:
    weights = copied_model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    said = worker(copied_model)
    assert "bad_model_file" in said
    assert "model.safetensors" in said


def test_a_missing_tokenizer_is_named(copied_model: Path) -> None:
    (copied_model / "tokenizer.json").unlink()
    said = worker(copied_model)
    assert "bad_model_file" in said
    assert "tokenizer.json" in said


def test_an_unknown_model_is_named() -> None:
    assert "smollm2" in worker("smolm2")


def test_a_taken_port_is_named(tiny_model: Path, taken_port: int) -> None:
    said = worker(tiny_model, "--port", str(taken_port))
    assert str(taken_port) in said
    assert "in use" in said


def test_an_absent_etcd_is_named(tiny_model: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    said = worker(tiny_model, "--etcd-endpoints", address)
    assert address in said
    assert "etcd_endpoints" in said
    assert address in run("serve", str(tiny_model), "--etcd-endpoints", address, "--port", "0", "--grpc-port", "0")


def test_a_kv_pool_too_small_for_one_request_is_refused(tiny_model: Path) -> None:
    said = worker(tiny_model, "--num-kv-blocks", "2")
    assert "bad_setting" in said
    assert "max_model_len" in said


def test_a_kv_pool_larger_than_the_machine_is_refused(tiny_model: Path) -> None:
    assert "available" in worker(tiny_model, "--kv-cache-memory", "900T")


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--swap-space", "900T"), "available"),
        (("--swap-space", "1"), "no KV block"),
        (("--num-host-blocks", "4", "--no-enable-prefix-caching"), "prefix cache"),
    ],
)
def test_swap_space_that_cannot_be_is_refused(tiny_model: Path, flags: tuple[str, ...], word: str) -> None:
    said = worker(tiny_model, *flags)
    assert "bad_setting" in said
    assert word in said


def test_faults_are_refused_on_an_open_address(tiny_model: Path) -> None:
    said = worker(tiny_model, "--host", "192.0.2.1", "--fault", "kv.flip_byte")
    assert "loopback" in said


def test_an_unknown_flag_or_key_gets_a_suggestion(tmp_path: Path) -> None:
    assert "--max-num-seqs" in run("serve", "smollm2", "--max-num-sq", "3")
    config = tmp_path / "config.yaml"
    config.write_text("max-num-sequences: 3\n")
    assert "max-num-seqs" in run("serve", "smollm2", "--config", str(config))
