"""A device that fails: what it computed is given to nobody, and whoever steps is told; what is no failure of its own is
told apart, and memory that does not suffice at start is a setting to change."""

from __future__ import annotations

import threading

import kernel_platform
import pytest
import torch
from device_models import device_decoder
from device_run import BUCKETS, PROMPTS, Run
from fake_runtime import FakeRuntime

from engine.device.buckets import Buckets
from engine.device.device_lost import DeviceLost
from engine.device.kv_memory import DeviceKVCache

pytest.importorskip("engine._sampling", reason="the engine's own native modules are not built here")

from engine.blocks.block_pool import BlockPool, ListGenerations
from engine.config import EngineConfig
from engine.engine import Engine
from engine.scheduling.request import Request
from engine.steps.batch import StepBatch
from wire.errors import ErrorCode, SpliceError
from wire.sampling import SamplingParams


class Bench:
    """An engine over a device that can be broken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runtime = FakeRuntime()
        platform = kernel_platform.emulated()
        self.model = device_decoder(platform, self.runtime, Buckets.up_to(2, 96))
        config = EngineConfig(num_blocks=8, max_model_len=96, max_num_seqs=2, max_num_batched_tokens=64)
        self.cache = DeviceKVCache.zeros(self.model.kv_layout(config.block_tokens, "auto"), 8, platform.device)
        self.engine = Engine(self.model, self.cache, config, BlockPool(8, ListGenerations(8)))
        self._monkeypatch = monkeypatch

    def submit(self, **sampling: object) -> None:
        params = SamplingParams(**{"max_tokens": 8, "ignore_eos": True, **sampling})
        self.engine.submit(Request((1, 1), list(PROMPTS[1]), len(PROMPTS[1]), params))

    def launches_raise(self, error: Exception) -> None:
        def run(*_: object) -> None:
            raise error

        self._monkeypatch.setattr(self.model._decoder, "run", run)
        self._monkeypatch.setattr(self.model._captured, "run", run)


@pytest.fixture
def bench(monkeypatch):
    return Bench(monkeypatch)


def test_tokens_of_a_device_that_failed_meanwhile_are_not_given_out(bench):
    bench.submit()
    assert not bench.engine.step().rows
    bench.runtime.is_lost = True
    with pytest.raises(DeviceLost):
        bench.engine.step()


@pytest.mark.parametrize("sampling", [{}, {"presence_penalty": 0.5}], ids=["ahead", "in turn"])
def test_a_lost_device_is_nobodys_fault_and_fails_no_request(bench, sampling):
    bench.submit(**sampling)
    bench.launches_raise(SpliceError(ErrorCode.INTERNAL_ERROR, "an illegal memory access was encountered"))
    bench.runtime.is_lost = True
    with pytest.raises(DeviceLost, match=r"first seen while computing a step.*illegal memory access"):
        bench.engine.step()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("tried to allocate 2 GiB"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        SpliceError(ErrorCode.INTERNAL_ERROR, "rms_norm: out of memory (cudaErrorMemoryAllocation)"),
    ],
    ids=["allocator", "cuda", "cublas", "kernel"],
)
def test_memory_that_runs_out_in_a_step_ends_the_worker_and_names_settings(bench, error):
    bench.submit()
    bench.launches_raise(error)
    with pytest.raises(DeviceLost, match=r"ran out.*--gpu-memory-utilization or --kv-cache-memory") as lost:
        bench.engine.step()
    assert lost.value.code is ErrorCode.WORKER_LOST


def test_a_launch_that_is_refused_by_a_device_that_goes_on_fails_its_request_alone(bench):
    bench.submit()
    bench.launches_raise(SpliceError(ErrorCode.INTERNAL_ERROR, "too many resources requested for launch"))
    output = bench.engine.step()
    assert [key for key, _ in output.failed] == [(1, 1)]
    assert "too many resources" in str(output.failed[0][1])


def test_a_device_found_lost_by_who_reads_logits_is_told(bench):
    logits = bench.model.forward(StepBatch((Run(bench.model).slice(0, PROMPTS[1]),)))
    with pytest.raises(IndexError):
        logits.host([99])
    bench.runtime.is_lost = True
    with pytest.raises(DeviceLost):
        logits.host([99])


def test_graphs_that_do_not_fit_beside_the_cache_name_the_settings(monkeypatch):
    runtime = FakeRuntime()
    platform = kernel_platform.emulated()
    model = device_decoder(platform, runtime, BUCKETS)
    monkeypatch.setattr(runtime, "capture", _interrupted)
    with pytest.raises(
        SpliceError, match=r"capturing graphs.*--gpu-memory-utilization or --kv-cache-memory"
    ) as refused:
        model.bind_kv_cache(DeviceKVCache.zeros(model.kv_layout(32, "auto"), 8, platform.device))
    assert (refused.value.code, refused.value.param) == (ErrorCode.BAD_SETTING, "gpu_memory_utilization")
    with pytest.raises(SpliceError, match=r"step of 40 tokens.*--max-num-batched-tokens") as refused:
        model.memory_needs(32, 40)
    assert refused.value.code is ErrorCode.BAD_SETTING


def _interrupted(work: object) -> None:
    """As a capture ends that ran out of memory: with an error of its own on top."""
    try:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")
    except torch.OutOfMemoryError as error:
        raise SpliceError(ErrorCode.INTERNAL_ERROR, "capturing a step failed on the GPU") from error


def test_another_thread_enters_the_device_before_it_has_it_do_anything(bench):
    """A model is made by one thread and steps by another, whose GPU would be the first there is."""
    bench.submit()
    rows: list[object] = []

    def run() -> None:
        while bench.engine.has_work():
            rows.extend(bench.engine.step().rows)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert len(rows) == 8
