"""A native model over a KV cache in int8: near the one over float32, and exact under every schedule."""

from __future__ import annotations

import numpy as np
import pytest
from drawn_weights import MODEL, DrawnWeights

from engine.batch import SequenceSlice, StepBatch
from engine.kv_cache import KVCache
from engine.layers.torch_weights import TorchWeights
from engine.models.decoder import Decoder
from engine.models.native_decoder import NativeDecoder
from engine.ops.registry import select_ops
from wire.errors import SpliceError

TOKENS = [(11 * i) % 200 for i in range(90)]


def logits(model: NativeDecoder, kv_dtype: str, chunk: int) -> np.ndarray:
    model.bind_kv_cache(KVCache.zeros(model.kv_layout(32, kv_dtype), 4))
    for start in range(0, len(TOKENS), chunk):
        part = SequenceSlice(TOKENS[start : start + chunk], start, (2, 0, 3), wants_logits=True)
        last = model.forward(StepBatch((part,)))
    return last


def test_logits_are_near_those_over_float32_and_do_not_depend_on_chunks() -> None:
    model = NativeDecoder(MODEL, DrawnWeights(lambda name: "q4_1"), 200, "int8")
    exact, whole = logits(model, "float32", 90), logits(model, "int8", 90)
    assert 0 < np.abs(whole - exact).max() < 0.05 * np.abs(exact).max()
    for chunk in (1, 7, 32):
        assert np.array_equal(logits(model, "int8", chunk), whole)


def test_a_block_holds_values_and_scales() -> None:
    layout = NativeDecoder(MODEL, DrawnWeights(lambda name: "float32"), 200, "float32").kv_layout(32, "int8")
    assert layout.plane_bytes == 32 * 32 + 32 * 4
    assert layout.block_bytes == 2 * 2 * 2 * layout.plane_bytes
    assert KVCache.zeros(layout, 3).elements().shape == (3, 2, 2, 2, layout.plane_bytes)


def test_torch_models_have_no_such_cache() -> None:
    import torch

    weights = TorchWeights(DrawnWeights(lambda name: "float32"), torch.float32)
    model = Decoder(MODEL, select_ops(torch.float32), weights, 200)
    with pytest.raises(SpliceError, match="int8"):
        model.kv_layout(32, "int8")
