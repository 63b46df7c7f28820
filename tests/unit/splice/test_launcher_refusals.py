"""What the launcher refuses before it starts anything, and how it divides the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from splice.cluster.launcher import Launcher
from splice.cluster.run_dir import RunDirectory
from splice.gpu_probe import probe_gpu
from splice.settings.commands import ServeSettings, WorkerCommandSettings
from splice.settings.parts import pool_settings, worker_settings
from wire.errors import ErrorCode, SpliceError

CORES = len(os.sched_getaffinity(0))


def test_a_damaged_model_is_refused_before_etcd_and_ray_start(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + bytes(100))
    run_dir = RunDirectory("c", tmp_path / "run")
    said: list[str] = []
    settings = ServeSettings(model=str(damaged), port=0, grpc_port=0, kv_cache_memory=1 << 20)
    launcher = Launcher(settings, run_dir, said.append)
    with pytest.raises(SpliceError, match=r"damaged\.gguf") as caught, launcher.running():
        pytest.fail("it started")
    assert caught.value.code is ErrorCode.BAD_MODEL_FILE
    assert launcher.state.etcd_endpoints == ()
    assert launcher.state.ray_address is None
    assert launcher.state.processes == ()
    assert not run_dir.path.exists()
    assert said == []


@pytest.mark.skipif(probe_gpu().gpus != (), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused_before_etcd_and_ray_start(tmp_path: Path) -> None:
    run_dir = RunDirectory("c", tmp_path / "run")
    (tmp_path / "model.gguf").touch()
    launcher = Launcher(
        ServeSettings(model=str(tmp_path / "model.gguf"), port=0, grpc_port=0, device="cuda"), run_dir, print
    )
    with pytest.raises(SpliceError, match="use --device cpu") as caught, launcher.running():
        pytest.fail("it started")
    assert (caught.value.code, caught.value.param) == (ErrorCode.MISSING_PART, "device")
    assert launcher.state.processes == ()


def test_fp8_on_a_cpu_is_refused_before_etcd_and_ray_start(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    settings = ServeSettings(model=str(tmp_path / "model.gguf"), port=0, grpc_port=0, quantization="fp8")
    launcher = Launcher(settings, RunDirectory("c", tmp_path / "run"), print)
    with pytest.raises(SpliceError, match="use --device cuda") as caught, launcher.running():
        pytest.fail("it started")
    assert (caught.value.code, caught.value.param) == (ErrorCode.BAD_SETTING, "quantization")
    assert launcher.state.processes == ()


@pytest.mark.parametrize(
    ("pools", "expected"),
    [
        ({"prefill": 0, "decode": 1}, CORES),
        ({"prefill": 1, "decode": 1}, max(1, CORES // 2)),
        ({"prefill": 100, "decode": 100 * CORES}, 1),
        ({"prefill": 1, "decode": 1, "num_threads": 7}, 7),
        ({"prefill": 1, "decode": 1, "ray_address": "10.0.0.1:6379"}, 1),
    ],
    ids=["colocated", "one of each", "more workers than cores", "as asked", "elsewhere"],
)
def test_workers_of_one_machine_share_its_cores(tmp_path: Path, pools: dict[str, int], expected: int) -> None:
    model = tmp_path / "model.gguf"
    model.touch()
    settings = ServeSettings(model=str(model), **pools)  # type: ignore[arg-type]
    assert pool_settings(settings, "decode", "127.0.0.1", ()).num_threads == expected


@pytest.mark.parametrize(
    ("chosen", "param", "remedy"),
    [
        ({"autotune": True}, "autotune", "--device cuda"),
        ({"enforce_eager": True}, "enforce_eager", "--device cuda"),
        ({"deterministic": False}, "deterministic", "add --autotune"),
        ({"deterministic": False, "device": "cuda"}, "deterministic", "add --autotune"),
    ],
)
def test_gpu_settings_that_would_change_nothing_are_refused(chosen: dict[str, object], param: str, remedy: str) -> None:
    with pytest.raises(SpliceError, match=remedy) as refused:
        worker_settings(WorkerCommandSettings(model="none", **chosen))  # type: ignore[arg-type]
    assert (refused.value.code, refused.value.param) == (ErrorCode.BAD_SETTING, param)


def test_gpu_settings_reach_the_worker(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.touch()
    settings = WorkerCommandSettings(model=str(model), device="cuda:1", autotune=True, deterministic=False)
    made = worker_settings(settings)
    assert (made.gpu_index, made.deterministic, made.tactics_folder is None) == (1, False, False)
    assert made.kv_transports[0] == "cuda_ipc"


def test_a_worker_alone_takes_all_cores(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.touch()
    assert worker_settings(WorkerCommandSettings(model=str(model))).num_threads == CORES
