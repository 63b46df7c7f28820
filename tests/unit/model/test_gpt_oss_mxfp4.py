"""GPT-OSS as it is published, experts in MXFP4: multiplied packed, to the logits of the values its blocks stand for."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, get_args

import gguf
import numpy as np
import pytest
import torch
from moe_gguf_files import write_moe_gguf
from moe_models import save_moe
from safetensors.torch import load_file, save_file
from tiny_models import PagedRun

from engine.formats.gguf_file import GgufFile
from engine.formats.gguf_weights import GgufWeights
from engine.formats.hf_weights import SafetensorsWeights
from engine.loader import check_model, load_model
from engine.models.gpt_oss import GPT_OSS
from engine.ops.names import Activations, ActivationsChoice
from engine.ops.native_kernels import QUANTISED_KINDS
from engine.weights import WeightSource
from wire.errors import ErrorCode, SpliceError

TOKENS = torch.randint(0, 320, (50,), generator=torch.Generator().manual_seed(3)).tolist()
MXFP4 = gguf.GGMLQuantizationType.MXFP4


def _publish(directory: Path) -> Any:
    """A model whose experts are turned into blocks, and the reference given what they hold."""
    reference = save_moe(directory, "gpt-oss", hidden_size=64, head_dim=16, initializer_range=0.2)
    tensors = load_file(directory / "model.safetensors")
    for name, parameter in reference.named_parameters():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            rows = np.ascontiguousarray(parameter.data.transpose(1, 2).numpy())
            stored = gguf.quants.quantize(rows, MXFP4).reshape(*rows.shape[:2], -1, 17)
            values = gguf.quants.dequantize(stored.reshape(-1, 17), MXFP4).reshape(rows.shape)
            parameter.data.copy_(torch.from_numpy(values.copy()).transpose(1, 2))
            # From "first half in the low bits" of 32 values to "even ones in the low bits".
            codes = np.concatenate((stored[..., 1:] & 15, stored[..., 1:] >> 4), axis=-1)
            del tensors[name]
            tensors[f"{name}_blocks"] = torch.from_numpy(codes[..., 0::2] | codes[..., 1::2] << 4)
            tensors[f"{name}_scales"] = torch.from_numpy(stored[..., 0].copy())
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    _change_config(directory, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    return reference


def _change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


BOUNDS = {"float32": 1e-4, "bfloat16": 0.02, "int8": 0.05}
"""Of a logit's error, in units of the largest logit."""


def _logits(model: Path, activations: Activations) -> torch.Tensor:
    loaded = load_model(model, served_name=None, dtype="float32", max_model_len=None, activations=activations)
    return PagedRun(loaded.model, 2, "float32").step([(0, 0, TOKENS)])[0]


@pytest.mark.parametrize("activations", get_args(Activations))
def test_experts_in_blocks_give_the_logits_of_their_values(tmp_path: Path, activations: Activations) -> None:
    reference = _publish(tmp_path)
    check_model(tmp_path)
    with torch.inference_mode():
        expected = reference(torch.tensor([TOKENS])).logits[0, -1]
    found = _logits(tmp_path, activations)
    assert (found - expected).abs().max() / expected.abs().max() < BOUNDS[activations]


@pytest.mark.parametrize("activations", get_args(Activations))
def test_either_format_of_one_model_gives_the_same_bits(tmp_path: Path, activations: Activations) -> None:
    write_moe_gguf(tmp_path / "m.gguf", "gpt-oss", _publish(tmp_path), MXFP4)
    assert torch.equal(_logits(tmp_path, activations), _logits(tmp_path / "m.gguf", activations))


def test_packed_experts_have_the_bits_of_their_values_in_float32(tmp_path: Path) -> None:
    reference = _publish(tmp_path)
    packed = _logits(tmp_path, "float32")
    reference.save_pretrained(tmp_path)
    _change_config(tmp_path, quantization_config=None)
    assert torch.equal(_logits(tmp_path, "float32"), packed)


@pytest.mark.parametrize("part", ["gate", "up", "down"])
def test_experts_are_taken_packed_from_either_format(tmp_path: Path, part: str) -> None:
    write_moe_gguf(tmp_path / "m.gguf", "gpt-oss", _publish(tmp_path), MXFP4)
    file = GgufFile(tmp_path / "m.gguf")
    spec = GPT_OSS.read_gguf(file)
    sources: list[WeightSource] = [
        GgufWeights(file, partial(GPT_OSS.gguf_tensor, spec)),
        SafetensorsWeights(tmp_path, partial(GPT_OSS.hf_tensor, spec)),
    ]
    name = f"model.layers.2.mlp.experts.4.{part}_proj.weight"
    of_gguf, of_directory = (source.take_matrix(name, (64, 64), QUANTISED_KINDS) for source in sources)
    assert of_gguf.kind == of_directory.kind == "mxfp4"
    assert of_gguf.data.shape == (64, 2 * 17)
    assert np.array_equal(of_gguf.data, of_directory.data)
    assert np.array_equal(*(source.take(name, (64, 64)) for source in sources))


def test_packed_weights_meet_int8_where_others_meet_the_bfloat16_of_fast_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _publish(tmp_path / "packed")
    save_moe(tmp_path / "plain", "gpt-oss")

    def arithmetic(name: str, activations: ActivationsChoice) -> str:
        return load_model(
            tmp_path / name, served_name=None, dtype="auto", max_model_len=None, activations=activations
        ).numerics_id

    for is_fast, of_plain in ((True, "bfloat16"), (False, "int8")):
        monkeypatch.setattr("engine.loader.supports_fast_bfloat16", lambda is_fast=is_fast: is_fast)
        assert arithmetic("plain", "auto") == arithmetic("plain", of_plain)
        assert arithmetic("packed", "auto") == arithmetic("packed", "int8") != arithmetic("packed", "bfloat16")


@pytest.mark.parametrize("activations", ["int8", "float32"])
def test_a_scale_that_is_no_number_is_refused_naming_its_tensor(tmp_path: Path, activations: Activations) -> None:
    write_moe_gguf(tmp_path / "m.gguf", "gpt-oss", _publish(tmp_path), MXFP4)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.experts.down_proj_scales"][5, 63, 1] = 255
    save_file(tensors, tmp_path / "model.safetensors")
    raw = bytearray((tmp_path / "m.gguf").read_bytes())
    stored = next(
        each for each in gguf.GGUFReader(tmp_path / "m.gguf").tensors if each.name == "blk.1.ffn_down_exps.weight"
    )
    raw[int(stored.data_offset) + int(stored.n_bytes) - 17] = 255
    (tmp_path / "m.gguf").write_bytes(raw)
    for path, name in [(tmp_path, "experts.down_proj_scales"), (tmp_path / "m.gguf", "blk.1.ffn_down_exps.weight")]:
        with pytest.raises(SpliceError, match=f"{name} has an MXFP4 scale of 255") as refused:
            _logits(path, activations)
        assert refused.value.code is ErrorCode.BAD_MODEL_FILE


@pytest.mark.parametrize("damage", ["missing", "short", "float"])
def test_blocks_without_fitting_scales_are_named(tmp_path: Path, damage: str) -> None:
    _publish(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.experts.down_proj_scales"
    scales = tensors.pop(name)
    if damage != "missing":
        tensors[name] = scales[:, :, :1].contiguous() if damage == "short" else scales.float()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(SpliceError, match=name) as refused:
        load_model(tmp_path, served_name=None, dtype="float32", max_model_len=None)
    assert refused.value.code is ErrorCode.BAD_MODEL_FILE
    with pytest.raises(SpliceError, match=name):
        check_model(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"quantization_config": {"quant_method": "fp8"}}, {"swiglu_limit": 5.0}, {"layer_types": ["full"] * 3}]
)
def test_what_nobody_computes_is_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    save_moe(tmp_path, "gpt-oss")
    _change_config(tmp_path, **changes)
    with pytest.raises(SpliceError, match=next(iter(changes))) as refused:
        load_model(tmp_path, served_name=None, dtype="float32", max_model_len=None)
    assert refused.value.code is ErrorCode.BAD_MODEL_FILE
