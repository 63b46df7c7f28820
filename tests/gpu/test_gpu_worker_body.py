"""What a worker on a GPU is before its first connection: sized by what is left, and gone without a trace."""

# ruff: noqa: E402 (imports stand behind what may be missing)
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

PARTS = ("grpc", "structlog", "psutil", "typer", "safetensors", "tokenizers", "engine._sampling", "kvtransfer._native")
for part in PARTS:
    pytest.importorskip(part, reason=f"workers need {part}: install the package, build the native modules")

from fake_runtime import GRAPH_BYTES, MODEL_BYTES, SHARED_BYTES, STEP_BYTES

from engine.device.kv_memory import DeviceKVCache
from engine.models.device_decoder import DeviceDecoder
from engine.scheduling.request import Request, RequestKind
from kvtransfer.device_pool import DevicePoolMemory
from tests.gpu import emulated_splice
from tests.gpu.emulated_splice import FakeDevice
from tests.tiny_model import write_tiny_model
from wire.errors import ErrorCode, SpliceError
from wire.sampling import SamplingParams
from worker.body import Body, build_body
from worker.settings import WorkerSettings


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", head_dim=64)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    fake = FakeDevice(nbytes=2 * emulated_splice.GPU_BYTES, host_addresses=True)
    emulated_splice.install(fake, monkeypatch.setattr)
    return fake


@pytest.fixture
def build(model: Path, device: FakeDevice) -> Callable[..., Body]:
    def build_one(**settings: object) -> Body:
        sizes = {"max_model_len": 96, "max_num_seqs": 1, "max_num_batched_tokens": 32, "enforce_eager": True}
        return build_body(WorkerSettings(role="prefill", model_path=str(model), device="cuda", **{**sizes, **settings}))

    return build_one


def test_the_pool_is_what_the_model_leaves_and_the_engine_computes_in_it(build, device):
    body = build(gpu_memory_utilization=0.1, max_num_seqs=2, max_num_batched_tokens=64, enforce_eager=False)
    pool, cache = body.place.pool, body.place.cache
    assert isinstance(pool, DevicePoolMemory)
    assert isinstance(cache, DeviceKVCache)
    assert isinstance(body.loaded.model, DeviceDecoder)
    assert body.loaded.model.captured is not None
    taken = MODEL_BYTES + STEP_BYTES + SHARED_BYTES + 2 * GRAPH_BYTES
    assert pool.num_blocks == (int(0.1 * emulated_splice.GPU_BYTES) - taken) // body.layout.block_bytes
    request = Request(
        (1, 1), list(range(30, 66)), 36, SamplingParams(max_tokens=3, ignore_eos=True), kind=RequestKind.PREFILL
    )
    body.engine.submit(request)
    announced = []
    while body.engine.has_work():
        announced += body.engine.step().computed
    assert sum(len(blocks.block_ids) for blocks in announced) == 2
    place = announced[0].block_ids[0]
    with pool.lent(place) as held:
        assert bytes(held) == cache.blocks[place].numpy().tobytes(), "a hand-off reads what the engine wrote"
        assert any(held)
    body.place.check_device()
    device.end_event(body.place.written)
    pool.close()
    device.check()


def test_a_pool_the_device_cannot_hold_is_a_setting_and_leaves_nothing(build, device):
    with pytest.raises(SpliceError, match=r"cannot reserve a KV pool.*--gpu-memory-utilization") as refused:
        build(kv_cache_bytes=4 * emulated_splice.GPU_BYTES)
    assert refused.value.code is ErrorCode.BAD_SETTING
    assert not device.left


def test_a_gpu_without_room_for_blocks_names_what_to_change(build):
    with pytest.raises(SpliceError, match="nothing is left for the KV cache") as refused:
        build(gpu_memory_utilization=0.00001)
    assert refused.value.param == "gpu_memory_utilization"


@pytest.mark.parametrize("dtype", ["int8", "fp8_e4m3", "float32"])
def test_a_kv_cache_that_no_kernel_takes_is_refused_before_weights_are_read(build, device, dtype):
    with pytest.raises(SpliceError, match="use auto or bfloat16, or --device cpu") as refused:
        build(kv_cache_dtype=dtype)
    assert refused.value.param == "kv_cache_dtype"
    assert not device.left
