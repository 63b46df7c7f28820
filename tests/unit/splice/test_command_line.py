from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from splice.cli.main import app
from tests.tiny_model import write_tiny_model

ROOT = Path(__file__).resolve().parents[3]
COMMANDS = ("serve", "chat", "complete", "status", "down", "pull", "doctor", "router", "worker", "demo", "bench")


def splice(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "splice", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
        env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1"},
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_print_config_tells_each_value_with_its_origin() -> None:
    result = splice("serve", "--print-config", "--port", "1234")
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["port", "1234", "--port"] in rows
    assert ["grpc-port", "8001", "default"] in rows


def test_print_config_hides_the_key() -> None:
    assert "sesame" not in splice("serve", "--print-config", "--api-key", "sesame").stdout


def test_a_mistyped_flag_is_refused_with_a_suggestion() -> None:
    result = splice("serve", "--max-num-seq", "3")
    assert result.returncode == 2
    assert "--max-num-seqs" in result.stderr


def test_a_dry_run_checks_and_starts_nothing(model: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    flags = ("--port", "0", "--grpc-port", "0", "--kv-cache-memory", "1M", "--run-dir", str(run_dir))
    result = splice("serve", str(model), "--dry-run", *flags)
    assert result.returncode == 0, result.stderr
    assert "nothing was started" in result.stderr
    assert not run_dir.exists()


def test_a_dry_run_names_what_is_wrong_with_a_model(model: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(model, tmp_path / "model"))
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    result = splice("serve", str(damaged), "--dry-run", "--port", "0", "--grpc-port", "0", "--kv-cache-memory", "1M")
    assert result.returncode == 2
    assert "bad_model_file" in result.stderr
    assert "model.safetensors" in result.stderr


def test_a_port_in_use_is_one_message_and_exit_code_2(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = splice("serve", str(model), "--dry-run", "--port", str(port), "--grpc-port", "0")
    assert result.returncode == 2
    assert f"127.0.0.1:{port}" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_etcd_that_does_not_answer_is_named(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = f"127.0.0.1:{gone.getsockname()[1]}"
    flags = ("--port", "0", "--grpc-port", "0", "--etcd-endpoints", address)
    result = splice("serve", str(model), "--dry-run", *flags)
    assert result.returncode == 2
    assert address in result.stderr


def test_a_missing_model_is_named_with_the_remedy() -> None:
    result = splice("serve", "smolm2", "--dry-run")
    assert result.returncode == 2
    assert "did you mean smollm2?" in result.stderr


def test_chat_without_a_server_says_how_to_start_one() -> None:
    result = splice("chat", "hello", "--url", "http://127.0.0.1:1")
    assert result.returncode == 2
    assert "splice serve" in result.stderr


def test_status_and_down_of_a_cluster_that_does_not_run(tmp_path: Path) -> None:
    flags = ("--cluster", "nowhere", "--run-dir", str(tmp_path))
    assert splice("status", *flags).returncode == 2
    assert splice("down", *flags).returncode == 0
