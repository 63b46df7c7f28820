"""A step in one native call has the bits of the operations taken one by one."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import msgspec
import pytest
import torch
from tiny_models import CONFIG, PagedRun, forward, save_llama

from engine._native import Decoder as NativeStep
from engine._native import Kernels
from engine.blocks.kv_cache import KVCache
from engine.formats.fields import read_json_object
from engine.formats.hf_weights import SafetensorsWeights
from engine.formats.stored import Stored
from engine.layers.torch_weights import TorchWeights
from engine.loader import load_model
from engine.models import native_decoder
from engine.models.decoder import Decoder
from engine.models.llama import spec_from_config
from engine.models.native_decoder import NativeDecoder
from engine.ops.native import NativeOps
from engine.ops.native_kernels import KERNELS
from engine.ops.registry import select_ops
from engine.steps.batch import SequenceSlice, StepBatch

VARIANTS = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "odd sizes": {"hidden_size": 52, "intermediate_size": 70, "head_dim": 10, "vocab_size": 323},
}


def both(directory: Path, **changes: object) -> tuple[NativeDecoder, Decoder]:
    """One model compiled, and the same one run op by op."""
    save_llama(directory, **changes)
    spec = spec_from_config(read_json_object(directory / "config.json"))
    ops = select_ops(torch.float32)
    weights = SafetensorsWeights(directory, Stored)
    return NativeDecoder(spec, weights, 200, "float32"), Decoder(spec, ops, TorchWeights(weights, torch.float32), 200)


@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_compiled_step_has_the_bits_of_its_operations(tmp_path: Path, variant: str, kv_dtype: str) -> None:
    compiled, opwise = (PagedRun(model, 24, kv_dtype) for model in both(tmp_path, **VARIANTS[variant]))
    rng = random.Random(4)
    ends = dict.fromkeys(range(4), 0)
    for _ in range(12):
        parts = []
        for sequence in rng.sample(range(4), rng.randint(1, 4)):
            size = min(rng.choice((1, 1, 5, 15)), 160 - ends[sequence])
            parts.append((sequence, ends[sequence], [rng.randrange(CONFIG["vocab_size"]) for _ in range(size)]))
            ends[sequence] += size
        assert torch.equal(compiled.step(parts), opwise.step(parts))
    written = ~compiled.kv_cache.isnan()
    assert torch.equal(written, ~opwise.kv_cache.isnan())
    assert torch.equal(compiled.kv_cache[written], opwise.kv_cache[written])


def test_steps_without_logits_write_the_cache_and_return_none(tmp_path: Path) -> None:
    compiled, opwise = both(tmp_path)
    caches = []
    for model in (compiled, opwise):
        cache = torch.zeros(2, *model.kv_layout(32, "auto").block_shape)
        batch = StepBatch((SequenceSlice([5, 6, 7], 0, (1,), wants_logits=False), SequenceSlice([8], 0, (0,), True)))
        assert forward(model, StepBatch(batch.slices[:1]), cache).shape == (0, CONFIG["vocab_size"])
        assert forward(model, batch, cache).shape == (1, CONFIG["vocab_size"])
        caches.append(cache)
    assert caches[0].count_nonzero() > 0
    assert torch.equal(caches[0], caches[1])


def test_bfloat16_models_and_the_reference_have_no_compiled_step(tmp_path: Path) -> None:
    save_llama(tmp_path)
    for dtype, ops, kind in (
        ("float32", "auto", NativeDecoder),
        ("bfloat16", "auto", Decoder),
        ("float32", "reference", Decoder),
    ):
        model = load_model(tmp_path, served_name=None, dtype=dtype, max_model_len=None, ops=ops).model
        assert type(model) is kind


def test_a_model_without_a_native_step_says_why_and_runs_op_by_op(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_llama(tmp_path)
    monkeypatch.setattr(native_decoder, "obstacle", lambda spec: "it is blue")
    with caplog.at_level(logging.INFO, logger="engine.loader"):
        model = load_model(tmp_path, served_name=None, dtype="float32", max_model_len=None).model
    assert [record.getMessage() for record in caplog.records] == [
        "llama is computed operation by operation, because it is blue"
    ]
    assert isinstance(model, Decoder)
    assert PagedRun(model, 2).step([(0, 0, [5, 6])]).isfinite().all()


def test_a_step_is_shared_by_as_many_threads_as_asked_for(tmp_path: Path) -> None:
    save_llama(tmp_path)
    logits = []
    try:
        for num_threads in (3, 1):
            model = load_model(
                tmp_path, served_name=None, dtype="float32", max_model_len=None, num_threads=num_threads
            ).model
            assert KERNELS.num_threads == num_threads
            logits.append(PagedRun(model, 4).step([(0, 0, list(range(60)))]))
    finally:
        KERNELS.num_threads = 1
    assert torch.equal(*logits)


def test_a_step_outside_its_bounds_is_refused(tmp_path: Path) -> None:
    model, _ = both(tmp_path)
    cache = torch.zeros(2, *model.kv_layout(32, "auto").block_shape)
    for part, message in (
        (SequenceSlice([CONFIG["vocab_size"]], 0, (0,), True), "vocabulary"),
        (SequenceSlice([1], 200, (0, 1, 0, 1, 0, 1, 0), True), "outside cos_sin"),
        (SequenceSlice([1], 0, (2,), True), "outside kv_cache"),
    ):
        with pytest.raises(ValueError, match=message):
            forward(model, StepBatch((part,)), cache)
    layout = msgspec.structs.replace(model.kv_layout(32, "auto"), num_layers=1)
    model.bind_kv_cache(KVCache.zeros(layout, 2))
    with pytest.raises(ValueError, match="another model"):
        model.forward(StepBatch((SequenceSlice([1], 0, (0,), True),)))


def test_weights_of_the_wrong_shape_are_refused() -> None:
    table = NativeOps.pack(torch.zeros(20, 16))
    sizes = {"eps": 1e-5, "num_kv_heads": 1, "head_dim": 4}
    decoder = NativeStep(Kernels(), table, table, torch.ones(16), **sizes)
    square = NativeOps.pack(torch.zeros(16, 16))
    wide, ones = NativeOps.pack(torch.zeros(32, 16)), torch.ones(16)
    with pytest.raises(ValueError, match="output has"):
        decoder.add_layer(
            input_norm=ones,
            qkv=square,
            qkv_bias=None,
            output=square,
            output_bias=None,
            mlp_norm=ones,
            gate_up=wide,
            gate_up_bias=None,
            down=square,
            down_bias=None,
            cos_sin=torch.zeros(9, 4),
            num_heads=2,
            scale=0.5,
        )
    with pytest.raises(ValueError, match="differ in shape"):
        NativeStep(Kernels(), table, square, torch.ones(16), **sizes)
