"""What `benchmarks.gpu.steps` times is a step of the engine's own decoder, and its floor is the bytes of that model."""

from __future__ import annotations

import math

import torch
from device_models import DrawnByName, device_decoder, runtime_of

from benchmarks.gpu import model
from benchmarks.gpu.model import BLOCK_TOKENS, LLAMA_8B, DrawnWeights
from benchmarks.gpu.steps import bind, decode_batch, decode_time, floor_bytes
from engine.device.buckets import Buckets
from engine.models.kv_layouts import decoder_kv_layout
from engine.models.needed_tensors import needed_tensors


def test_a_timed_step_is_a_replayed_graph_that_attends_to_every_position(platform):
    runtime = runtime_of(platform)
    model = device_decoder(platform, runtime, Buckets((3,), (70,)))
    bind(model, platform.device, 3, 70)
    batch = decode_batch(3, 70)
    assert [part.start for part in batch.slices] == [69, 69, 69]
    blocks = [block for part in batch.slices for block in part.block_table]
    assert sorted(blocks) == list(range(9))
    synchronise = (lambda: None) if platform.name == "emulated" else torch.cuda.synchronize
    whole, queued = decode_time(model, batch, synchronise, rounds=3, steps=2)
    assert 0 < queued < math.inf
    assert 0 < whole < math.inf
    assert [key.sequences for key in model.captured.keys] == [3]
    logits = model.forward(batch).host(slice(None))
    assert logits.shape[0] == 3
    assert bool(torch.from_numpy(logits).isfinite().all())


def test_the_floor_is_every_weight_that_is_read_and_every_key_and_value():
    """8.03 billion parameters in two bytes, less the embedding's table; 128 KiB a position."""
    layout = decoder_kv_layout(LLAMA_8B, "bfloat16", BLOCK_TOKENS, "auto")
    parameters = sum(math.prod(tensor.shape) for tensor in needed_tensors(LLAMA_8B))
    assert round(parameters / 1e9, 2) == 8.03
    none = floor_bytes(LLAMA_8B, layout, 2 * parameters, 0, 1024)
    assert none == 2 * (parameters - 128256 * 4096)
    assert floor_bytes(LLAMA_8B, layout, 2 * parameters, 64, 1024) - none == 64 * 1024 * (128 << 10)


def test_drawn_weights_are_of_the_shapes_asked_for_and_counted():
    device = torch.device("cpu")
    drawn = DrawnWeights(device)
    matrix, norm = drawn.take_matrix("w", (64, 256), frozenset()), drawn.take("norm", (64,))
    assert drawn.num_bytes == 2 * (64 * 256 + 64)
    assert 0.8 < float(matrix.float().std()) * 16 < 1.2
    assert abs(float(norm.float().mean()) - 1) < 0.1
    drawn.take_matrix("w", (64, 256), frozenset({"fp8_rows"}))
    assert drawn.num_bytes == 2 * (64 * 256 + 64) + 64 * 256 + 64 * 4
    assert matrix.shape == DrawnByName(device).take("w", (64, 256)).shape


def test_a_model_is_kept_until_another_is_asked_for_and_gone_before_that_is_built(monkeypatch, tmp_path):
    """What is still there when a runtime begins to count counts as others', and is missing when it goes."""
    there: list[int] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(model, "_built", lambda mode, weights, tactics: there.append(len(model._kept)) or object())
    first = model.build("deterministic", "bf16", tmp_path)
    assert model.build("deterministic", "bf16", tmp_path) is first
    assert model.build("fast", "bf16", tmp_path) is not first
    assert there == [0, 0]
    model.forget()
    assert not model._kept
