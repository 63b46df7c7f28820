"""Tiny directories whose projections are in FP8, as each of the published formats has them, beside their values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

Scaling = Literal["tensor", "rows", "blocks"]
LARGEST, BLOCK = 448.0, 128


def _group(strategy: str, activations: dict[str, Any] | None) -> dict[str, Any]:
    eight_bits = {"num_bits": 8, "type": "float", "symmetric": True}
    weights = {**eight_bits, "strategy": strategy, "dynamic": False}
    if strategy == "block":
        weights["block_structure"] = [128, 128]
    rows = None if activations is None else {**eight_bits, **activations}
    return {"targets": ["Linear"], "weights": weights, "input_activations": rows, "output_activations": None}


def _compressed(strategy: str, activations: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed",
        "config_groups": {"group_0": _group(strategy, activations)}, "ignore": ["lm_head"], "kv_cache_scheme": None,
    }  # fmt: skip


FORMATS: dict[str, tuple[dict[str, Any], Scaling, str, str | None]] = {
    "fp8-blocks": (
        {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128],
         "modules_to_not_convert": ["lm_head"]},
        "blocks", "_scale_inv", None,
    ),
    "fp8-tensor": ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "tensor", "_scale", None),
    "fp8-static": (
        {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
        "tensor", "_scale", "input_scale",
    ),
    "fp8-static-inverse": (
        {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None},
        "tensor", "_scale_inv", "activation_scale",
    ),
    "compressed-channel": (_compressed("channel", {"strategy": "token", "dynamic": True}), "rows", "_scale", None),
    "compressed-tensor": (
        _compressed("tensor", {"strategy": "tensor", "dynamic": False}), "tensor", "_scale", "input_scale",
    ),
    "compressed-weights": (_compressed("channel", None), "rows", "_scale", None),
    "compressed-blocks": (
        _compressed("block", {"strategy": "group", "group_size": 128, "dynamic": True}), "blocks", "_scale", None,
    ),
    "fbgemm": (
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]},
        "rows", "_scale", None,
    ),
}  # fmt: skip
"""(configuration, what shares a scale, end of the scales' name, name of the scale of what a matrix meets)"""
INPUT_SCALE = 0.037


def quantised(weight: torch.Tensor, scaling: Scaling) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of a matrix, and its scales as files have them."""
    rows, columns = weight.shape
    if scaling == "tensor":
        scales = weight.abs().amax() / LARGEST
        return (weight / scales).to(torch.float8_e4m3fn), scales
    if scaling == "rows":
        scales = weight.abs().amax(1, keepdim=True) / LARGEST
        return (weight / scales).to(torch.float8_e4m3fn), scales
    scales = torch.stack([
        torch.stack([block.abs().amax() / LARGEST for block in band.split(BLOCK, 1)]) for band in weight.split(BLOCK)
    ])  # fmt: skip
    return (weight / spread(scales, rows, columns)).to(torch.float8_e4m3fn), scales


def spread(scales: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Scales of blocks, one for each element."""
    return scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:rows, :columns]


def quantise_directory(directory: Path, plain: Path, kind: str, scale_dtype: torch.dtype = torch.float32) -> list[str]:
    """Turns the projections of a directory into FP8; `plain` becomes the same model in bfloat16, of the values that the
    codes stand for. Returns the names of what was turned."""
    configuration, scaling, end, input_scale = FORMATS[kind]
    stored: dict[str, torch.Tensor] = {}
    values: dict[str, torch.Tensor] = {}
    turned = []
    for name, tensor in load_file(directory / "model.safetensors").items():
        if not name.endswith(("proj.weight", "proj_with_mqa.weight", "w1.weight", "w2.weight", "w3.weight")):
            is_exact = "score_correction" in name
            stored[name] = values[name] = tensor if is_exact else tensor.bfloat16()
            continue
        codes, scales = quantised(tensor.float(), scaling)
        scales = scales.to(scale_dtype)
        stored[name], stored[name + end] = codes, scales
        wide = spread(scales.float(), *codes.shape) if scaling == "blocks" else scales.float()
        values[name] = (codes.float() * wide).bfloat16()
        if input_scale is not None:
            stored[name.removesuffix("weight") + input_scale] = torch.tensor([INPUT_SCALE])
        turned.append(name)
    plain.mkdir()
    for file in ("config.json", "tokenizer.json", "generation_config.json"):
        (plain / file).write_bytes((directory / file).read_bytes())
    save_file(values, plain / "model.safetensors", metadata={"format": "pt"})
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    change_config(directory, quantization_config=configuration)
    return turned


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_tensor(directory: Path, name: str, tensor: torch.Tensor | None) -> None:
    """Replaces a tensor of the directory, or removes it."""
    tensors = load_file(directory / "model.safetensors")
    del tensors[name]
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
