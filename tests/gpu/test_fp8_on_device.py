"""Models whose matrices are in FP8 on a device, from the file on: codes stay codes, a sequence has one set of bits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from device_models import SPEC, DrawnByName, bound, device_decoder, reference_decoder, runtime_of
from device_run import BUCKETS, PROMPTS, Run, answers, assert_one_set_of_bits
from fp8_cases import exact_groups, exact_product

from engine.blocks.kv_cache import KVCache
from engine.device.buckets import Buckets
from engine.formats.fp8_config import Fp8Scheme
from engine.formats.hf_weights import SafetensorsWeights
from engine.formats.stored import Stored
from engine.layers.torch_weights import TorchWeights
from engine.models.needed_tensors import needed_tensors
from engine.ops.cuda import fp8_products
from engine.ops.cuda.candidates import Fp8Choice
from engine.ops.cuda.fp8 import gemm_fp8, quantise_rows
from engine.ops.cuda.fp8_products import Fp8Products
from engine.ops.cuda.fp8_reference import quantise_weight
from engine.rope_spec import RopeSpec
from engine.spec import LatentAttentionSpec, LayerSpec, MlpSpec, ModelSpec, MoeSpec, RoutingSpec

WIDE = replace(SPEC, hidden_size=128, layers=(LayerSpec(SPEC.layers[0].attention, MlpSpec(256)),))
"""A whole number of blocks along k, so that codes meet codes."""
_CPU = torch.device("cpu")


_DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3"}


def _save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """As safetensors lie: the package is nothing that kernels are tested with."""
    header, body = {}, b""
    for name, tensor in tensors.items():
        raw = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        place = [len(body), len(body) + len(raw)]
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
        body += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def _write(directory: Path, scaling: str, spec: ModelSpec = WIDE) -> SafetensorsWeights:
    drawn, tensors = DrawnByName(_CPU), {}
    for needed in needed_tensors(spec):
        name, tensor = needed.name, drawn.take(needed.name, needed.shape)
        if "proj" not in name or "k_proj" in name:  # stacked matrices are of both makes
            tensors[name] = tensor
            continue
        weight = quantise_weight(tensor, scaling)
        tensors[name] = weight.codes
        tensors[f"{name}_scale"] = weight.scales if scaling == "blocks" else weight.scales[:, None]
    _save(directory / "model.safetensors", tensors)
    return SafetensorsWeights(directory, Stored, Fp8Scheme(has_blocks=scaling == "blocks", activations="dynamic"))


@pytest.fixture(params=[("rows", "bfloat16"), ("blocks", "codes")])
def make(request, platform, tmp_path):
    scaling, rows = request.param
    source = _write(tmp_path, scaling)
    is_hopper = platform.name == "gpu" and torch.cuda.get_device_capability()[0] == 9
    fp8 = Fp8Choice(platform.device, rows, multiply=gemm_fp8 if is_hopper else exact_product)

    def model(buckets):
        if buckets == "plain":
            return reference_decoder(WIDE, TorchWeights(source, torch.bfloat16))
        weights = TorchWeights(source, torch.bfloat16, platform.device, keeps_quantised=True)
        return bound(device_decoder(platform, runtime_of(platform), buckets, WIDE, weights, fp8), platform, 16)

    return model


def test_norms_and_gates_that_leave_codes_change_no_bit(make, monkeypatch):
    made: list[str] = []

    def quantise(*arguments):
        made.append("codes")
        return quantise_rows(*arguments)

    def step() -> tuple[np.ndarray, int]:
        model = make(None)
        made.clear()
        return Run(model).step([(0, PROMPTS[1])]), len(made)

    monkeypatch.setattr(fp8_products, "quantise_rows", quantise)
    fused, of_fused = step()
    monkeypatch.setattr(Fp8Products, "form", lambda *_: None)
    apart, of_apart = step()
    np.testing.assert_array_equal(fused, apart)
    # The product for queries, keys and values takes rows of both makes; that of the output has no norm before it.
    assert (of_fused, of_apart) in ((0, 0), (2, 4))


def test_it_is_the_model_of_the_values_that_its_codes_stand_for(make):
    plain = make("plain")
    plain.bind_kv_cache(KVCache.zeros(plain.kv_layout(32, "auto"), 16))
    for wanted, found in zip(answers(plain), answers(make(BUCKETS)), strict=True):
        assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 0.15


def test_a_sequence_has_one_set_of_bits_launched_replayed_alone_and_in_company(make):
    assert_one_set_of_bits(make)


_LATENTS = LatentAttentionSpec(2, 48, 256, 32, 32, 40, RopeSpec(10000.0), scale=0.125)
_MIXTURE = MoeSpec(RoutingSpec(8, 2, "softmax", normalise=True), MlpSpec(48), shared=MlpSpec(32))
DEEP = replace(SPEC, architecture="deepseek_v3", layers=(LayerSpec(_LATENTS, _MIXTURE),))


def test_latents_and_experts_made_fp8_here_are_nearly_the_model_they_were(platform, monkeypatch):
    is_hopper = platform.name == "gpu" and torch.cuda.get_device_capability()[0] == 9
    rows = "codes" if is_hopper or platform.name == "emulated" else "bfloat16"
    multiply, groups = (gemm_fp8, None) if is_hopper else (exact_product, exact_groups)
    fp8 = Fp8Choice(platform.device, rows, quantises=True, multiply=multiply, multiply_groups=groups)

    def step(buckets: Buckets | None) -> list[np.ndarray]:
        weights = DrawnByName(platform.device)
        model = bound(device_decoder(platform, runtime_of(platform), buckets, DEEP, weights, fp8), platform, 8)
        run = Run(model)
        return [run.step([(0, PROMPTS[1]), (1, PROMPTS[2][:3])]), run.step([(0, [40]), (1, [41])])]

    plain = reference_decoder(DEEP)
    plain.bind_kv_cache(KVCache.zeros(plain.kv_layout(32, "auto"), 8))
    run = Run(plain)
    wanted = [run.step([(0, PROMPTS[1]), (1, PROMPTS[2][:3])]), run.step([(0, [40]), (1, [41])])]
    launched, replayed = step(None), step(Buckets((1, 2), (64,)))
    for exact, one, other in zip(wanted, launched, replayed, strict=True):
        np.testing.assert_array_equal(one, other)
        assert 1e-3 < np.linalg.norm(one - exact) / np.linalg.norm(exact) < 0.2
    monkeypatch.setattr(Fp8Products, "form", lambda *_: None)
    np.testing.assert_array_equal(step(None), launched)


OF_BLOCKS = replace(
    WIDE,
    architecture="qwen3_moe",
    layers=(LayerSpec(SPEC.layers[0].attention, MoeSpec(RoutingSpec(4, 2, "softmax", normalise=True), MlpSpec(128))),),
)


def test_experts_of_a_file_with_scales_of_blocks_meet_codes_and_a_sequence_has_one_set_of_bits(platform, tmp_path):
    source = _write(tmp_path, "blocks", OF_BLOCKS)
    is_hopper = platform.name == "gpu" and torch.cuda.get_device_capability()[0] == 9
    scalings: list[str] = []

    def groups(library, x, weight, permutation, *, tile):
        scalings.append(weight.scaling)
        return exact_groups(library, x, weight, permutation, tile=tile)

    multiply = gemm_fp8 if is_hopper else exact_product
    fp8 = Fp8Choice(platform.device, "codes", multiply=multiply, multiply_groups=None if is_hopper else groups)

    def model(buckets):
        weights = TorchWeights(source, torch.bfloat16, platform.device, keeps_quantised=True)
        return bound(device_decoder(platform, runtime_of(platform), buckets, OF_BLOCKS, weights, fp8), platform, 16)

    plain = reference_decoder(OF_BLOCKS, TorchWeights(source, torch.bfloat16))
    plain.bind_kv_cache(KVCache.zeros(plain.kv_layout(32, "auto"), 16))
    made = model(Buckets((4,), (64,)))
    scalings.clear()
    for wanted, found in zip(answers(plain, steps=1), answers(made, steps=1), strict=True):
        assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 0.2
    assert is_hopper or set(scalings) == {"blocks"}
    together, run = answers(model(None), steps=1), Run(model(Buckets((1,), (64,))))
    alone = [run.step([(0, PROMPTS[0])]), run.step([(0, [40])])]
    for one, rows in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one[0], rows[0])
