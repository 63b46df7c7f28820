"""Directories of mixtures of experts that say what nobody computes, or lack what they promise, are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from moe_models import save_moe
from safetensors.torch import load_file, save_file
from tiny_models import PagedRun

from engine.loader import DtypeChoice, check_model, load_model
from wire.errors import ErrorCode, SpliceError


def _change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("mixtral", "num_experts_per_tok", 6),
        ("mixtral", "num_local_experts", None),
        ("qwen3-moe", "decoder_sparse_step", 0),
        ("qwen3-moe", "quantization_config", {"quant_method": "awq"}),
        ("deepseek-v2", "topk_method", "noaux_tc"),
        ("deepseek-v2", "scoring_func", "sigmoid"),
        ("deepseek-v2", "norm_topk_prob", True),
        ("deepseek-v2", "moe_layer_freq", 2),
        ("deepseek-v2-groups", "n_group", 3),
        ("deepseek-v3", "topk_method", "greedy"),
        ("deepseek-v3", "n_group", 8),
        ("deepseek-v3", "topk_group", 5),
        ("deepseek-v3", "kv_lora_rank", 0),
        ("deepseek-v3", "qk_rope_head_dim", 5),
        ("deepseek-v3", "first_k_dense_replace", None),
    ],
)
def test_a_configuration_that_describes_no_model_we_compute_is_named(
    tmp_path: Path, kind: str, field: str, value: Any
) -> None:
    save_moe(tmp_path, kind)
    _change_config(tmp_path, **{field: value})
    words = {
        "num_experts_per_tok": "top_k 6", "n_group": "group", "topk_group": "top_groups",
        "qk_rope_head_dim": "5 dimensions turn",
    }  # fmt: skip
    with pytest.raises(SpliceError, match=words.get(field, field)) as refused:
        load_model(tmp_path, served_name=None, dtype="float32", max_model_len=None)
    assert refused.value.code is ErrorCode.BAD_MODEL_FILE


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("mixtral", "model.layers.1.block_sparse_moe.experts.3.w2.weight"),
        ("qwen3-moe", "model.layers.0.mlp.gate.weight"),
        ("gpt-oss", "model.layers.2.mlp.experts.gate_up_proj_bias"),
        ("gpt-oss", "model.layers.1.self_attn.sinks"),
        ("deepseek-v3", "model.layers.1.mlp.gate.e_score_correction_bias"),
        ("deepseek-v3", "model.layers.1.mlp.shared_experts.up_proj.weight"),
        ("deepseek-v3", "model.layers.0.self_attn.kv_b_proj.weight"),
    ],
)
@pytest.mark.parametrize("damage", ["missing", "another shape"])
def test_a_tensor_that_is_missing_or_of_another_shape_is_named(
    tmp_path: Path, kind: str, name: str, damage: str
) -> None:
    save_moe(tmp_path, kind)
    tensors = load_file(tmp_path / "model.safetensors")
    tensor = tensors.pop(name)
    if damage == "another shape":
        tensors[name] = tensor[:-1].contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(SpliceError, match=name) as refused:
        load_model(tmp_path, served_name=None, dtype="float32", max_model_len=None)
    assert refused.value.code is ErrorCode.BAD_MODEL_FILE
    with pytest.raises(SpliceError) as foretold:
        check_model(tmp_path)
    assert foretold.value.message == refused.value.message


@pytest.mark.parametrize("kind", ["gpt-oss", "deepseek-v3"])
def test_weights_in_bfloat16_are_computed_in_it_and_routed_by_exact_biases(tmp_path: Path, kind: str) -> None:
    """Stacked, turned and interleaved tensors too; the bias of a choice is never rounded."""
    reference = save_moe(tmp_path, kind)
    tensors = load_file(tmp_path / "model.safetensors")
    exact = {name for name in tensors if "score_correction" in name}
    rounded = {name: tensor if name in exact else tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(rounded, tmp_path / "model.safetensors")
    tokens = list(range(5, 45))
    with torch.inference_mode():
        for parameter in reference.parameters():
            parameter.copy_(parameter.bfloat16())
        expected = reference(torch.tensor([tokens])).logits[0, -1]
    logits = {}
    for dtype in get_args(DtypeChoice):
        model = load_model(tmp_path, served_name=None, dtype=dtype, max_model_len=None).model
        kv_dtype = "float32" if dtype == "float32" else "auto"
        logits[dtype] = PagedRun(model, 2, kv_dtype).step([(0, 0, tokens)])[0]
    assert (logits["float32"] - expected).abs().max() / expected.abs().max() < 1e-4
    assert torch.nn.functional.cosine_similarity(logits["bfloat16"], expected, dim=0) > 0.95
