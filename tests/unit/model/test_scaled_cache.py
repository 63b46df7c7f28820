"""A model over a KV cache of 8 bits: near the one over float32, and exact under every schedule and after every copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn_weights import ATTENTION, LAYER, MODEL, DrawnWeights

from engine.blocks.kv_cache import KVCache
from engine.layers.torch_weights import TorchWeights
from engine.models.causal_lm import CausalLM
from engine.models.decoder import Decoder
from engine.models.native_decoder import NativeDecoder
from engine.ops.registry import OpsChoice, select_ops
from engine.steps.batch import SequenceSlice, StepBatch
from wire.errors import SpliceError
from wire.kv_layout import compat_id

TOKENS = [(11 * i) % 200 for i in range(90)]
both_kinds = pytest.mark.parametrize("kv_dtype", ["int8", "fp8_e4m3"])


def native() -> NativeDecoder:
    return NativeDecoder(MODEL, DrawnWeights(lambda name: "q4_1"), 200, "int8")


def opwise(ops: OpsChoice) -> Decoder:
    weights = TorchWeights(DrawnWeights(lambda name: "float32"), torch.float32)
    return Decoder(MODEL, select_ops(torch.float32, ops), weights, 200)


def logits(model: CausalLM, kv_dtype: str, chunk: int) -> np.ndarray:
    model.bind_kv_cache(KVCache.zeros(model.kv_layout(32, kv_dtype), 4))
    for start in range(0, len(TOKENS), chunk):
        part = SequenceSlice(TOKENS[start : start + chunk], start, (2, 0, 3), wants_logits=True)
        last = model.forward(StepBatch((part,)))
    return last


MODELS: dict[str, Callable[[], CausalLM]] = {
    "step": native,
    "ops": lambda: opwise("auto"),
    "torch": lambda: opwise("reference"),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize(("kv_dtype", "error"), [("int8", 0.05), ("fp8_e4m3", 0.15)])
def test_logits_are_near_those_over_float32_and_do_not_depend_on_chunks(
    make: Callable[[], CausalLM], kv_dtype: str, error: float
) -> None:
    model = make()
    exact, whole = logits(model, "float32", 90), logits(model, kv_dtype, 90)
    assert 0 < np.abs(whole - exact).max() < error * np.abs(exact).max()
    for chunk in (1, 7, 32):
        assert np.array_equal(logits(model, kv_dtype, chunk), whole)


@both_kinds
def test_a_native_step_has_the_bits_of_its_operations(kv_dtype: str) -> None:
    step = NativeDecoder(MODEL, DrawnWeights(lambda name: "float32"), 200, "float32")
    assert np.array_equal(logits(step, kv_dtype, 90), logits(opwise("auto"), kv_dtype, 90))


@both_kinds
def test_a_block_holds_values_and_scales(kv_dtype: str) -> None:
    layout = native().kv_layout(32, kv_dtype)
    assert layout.plane_bytes == 32 * 32 + 32 * 4
    assert layout.block_bytes == 2 * 2 * 2 * layout.plane_bytes
    assert KVCache.zeros(layout, 3).elements().shape == (3, 2, 2, 2, layout.plane_bytes)


def test_types_of_one_size_are_two_layouts() -> None:
    ids = {compat_id(native().kv_layout(32, kind), "m", "n") for kind in ("int8", "fp8_e4m3", "bfloat16", "float32")}
    assert len(ids) == 4


def test_latents_and_odd_heads_have_no_such_cache() -> None:
    odd = replace(MODEL, layers=(replace(LAYER, attention=replace(ATTENTION, head_dim=30)),) * 2)
    weights = TorchWeights(DrawnWeights(lambda name: "float32"), torch.float32)
    model = Decoder(odd, select_ops(torch.float32), weights, 200)
    with pytest.raises(SpliceError, match="fp8_e4m3"):
        model.kv_layout(32, "fp8_e4m3")
