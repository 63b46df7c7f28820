"""GPT-OSS as it is published, experts in MXFP4, gives the logits of the values its blocks stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from moe_models import save_moe
from safetensors.torch import load_file, save_file
from tiny_models import PagedRun

from engine.loader import check_model, load_model
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


def test_experts_in_blocks_give_the_logits_of_their_values(tmp_path: Path) -> None:
    reference = _publish(tmp_path)
    check_model(tmp_path)
    model = load_model(tmp_path, served_name=None, dtype="float32", max_model_len=None).model
    with torch.inference_mode():
        expected = reference(torch.tensor([TOKENS])).logits[0, -1]
    logits = PagedRun(model, 2).step([(0, 0, TOKENS)])[0]
    assert (logits - expected).abs().max() / expected.abs().max() < 1e-4


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
