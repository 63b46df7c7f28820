"""A whole native step on every instruction set; `make test-isa` adds those that this machine lacks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from drawn_weights import ATTENTION, LAYER, MODEL, DrawnWeights
from tiny_models import PagedRun

from engine._native import supported_isas
from engine.models.native_decoder import NativeDecoder
from engine.ops.names import Activations
from engine.ops.native_kernels import KERNELS, set_num_threads
from engine.rope_spec import RopeSpec
from engine.spec import LatentAttentionSpec, LayerSpec, MlpSpec, ModelSpec, MoeSpec, RoutingSpec

LATENTS = LatentAttentionSpec(4, 64, 32, 24, 16, 32, RopeSpec(theta=1e4), 40**-0.5)
ROUTING = RoutingSpec(num_experts=7, top_k=3, scores="softmax", normalise=True)
SPECS: dict[str, ModelSpec] = {
    "dense": replace(MODEL, layers=(LAYER, replace(LAYER, attention=replace(ATTENTION, window=21, qk_norm=True)))),
    "experts": replace(MODEL, layers=(LAYER, LayerSpec(ATTENTION, MoeSpec(ROUTING, MlpSpec(64), MlpSpec(96))))),
    "latents": replace(MODEL, layers=(LayerSpec(LATENTS, LAYER.mlp),) * 2),
}
KINDS = {"q_proj": "q4_1", "k_proj": "q8_0", "v_proj": "q5_0", "gate_proj": "q4_0", "up_proj": "q5_1", "b_proj": "q8_0"}
SEQUENCES = [[(7 * i + 3 * s) % 200 for i in range(length)] for s, length in enumerate((19, 37, 50))]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """The kernels are the process's own."""
    before = KERNELS.isa
    yield
    KERNELS.isa = before
    set_num_threads(1)


def quantised(name: str) -> str:
    return next((kind for part, kind in KINDS.items() if part in name), "q4_1")


def in_chunks(model: NativeDecoder, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The last logits of all sequences, `size` tokens of each a step, and what the cache holds then."""
    run, last = PagedRun(model, 8), {}
    for start in range(0, max(map(len, SEQUENCES)), size):
        parts = [(s, start, tokens[start : start + size]) for s, tokens in enumerate(SEQUENCES) if start < len(tokens)]
        last.update(zip([s for s, _, _ in parts], run.step(parts), strict=True))
    return torch.stack([last[s] for s in range(len(SEQUENCES))]), run.kv_cache.nan_to_num(nan=-7.0)


@pytest.mark.parametrize(
    ("spec", "activations"),
    [*((spec, "int8") for spec in SPECS), ("dense", "float32"), ("experts", "bfloat16")],
)
def test_a_step_on_quantised_weights_has_the_same_bits_on_every_instruction_set(
    spec: str, activations: Activations
) -> None:
    model = NativeDecoder(SPECS[spec], DrawnWeights(quantised), 200, activations)
    KERNELS.isa = "portable"
    expected = in_chunks(model, 18)
    for isa in supported_isas():
        KERNELS.isa = isa
        for found, value in zip(in_chunks(model, 18), expected, strict=True):
            assert torch.equal(found, value), isa


@pytest.mark.parametrize("spec", SPECS)
def test_a_step_in_bfloat16_has_the_same_bits_on_every_instruction_set_but_amx(spec: str) -> None:
    model = NativeDecoder(SPECS[spec], DrawnWeights(lambda name: "bfloat16"), 200, "bfloat16")
    KERNELS.isa = "portable"
    expected = in_chunks(model, 18)
    for isa in supported_isas():
        KERNELS.isa = isa
        for found, value in zip(in_chunks(model, 18), expected, strict=True):
            assert torch.equal(found, value) == (isa != "amx"), isa
            torch.testing.assert_close(found, value, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("spec", SPECS)
def test_in_bfloat16_too_no_chunk_company_or_thread_changes_a_bit(spec: str, isa: str) -> None:
    model = NativeDecoder(SPECS[spec], DrawnWeights(lambda name: "bfloat16"), 200, "bfloat16")
    KERNELS.isa = isa
    alone = [PagedRun(model, 2).step([(s, 0, tokens)])[0] for s, tokens in enumerate(SEQUENCES)]
    for threads, size in ((3, 18), (1, 200)):
        set_num_threads(threads)
        assert torch.equal(in_chunks(model, size)[0], torch.stack(alone)), (threads, size)
