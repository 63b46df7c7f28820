"""GGUF files of mixtures of experts, laid out as their converter lays them out, from `transformers`' own models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from moe_models import save_moe
from tiny_models import add_byte_tokenizer

WIDE = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "head_dim": 16}
"""Whole blocks of every quantised type in a row."""
ARCHITECTURES = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
GQA = {"attention.head_count_kv": 2, "attention.key_length": 16, "attention.value_length": 16, "rope.freq_base": 1e4}
LATENT = {
    "attention.kv_lora_rank": 20, "rope.dimension_count": 6, "expert_shared_count": 2, "expert_weights_scale": 1.7,
}  # fmt: skip
OLD = {"attention.head_count_kv": 4, "attention.key_length": 16, "attention.value_length": 14}
NEW = {
    "attention.head_count_kv": 1, "attention.key_length": 26, "attention.value_length": 20,
    "attention.key_length_mla": 16, "attention.value_length_mla": 14,
}  # fmt: skip
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 8.0, "rope.scaling.original_context_length": 64}
HF_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 64}
MODELS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "mixtral": ("llama", "mixtral", {}, {**GQA, "rope.freq_base": 1e6}),
    "qwen3moe": ("qwen3moe", "qwen3-moe", {}, GQA),
    "gpt-oss": (
        "gpt-oss", "gpt-oss", {}, {**GQA, **YARN, "rope.freq_base": 150000.0, "attention.sliding_window": 17}
    ),
    "deepseek2-lite-old": (
        "deepseek2", "deepseek-v2-lite",
        {"mlp_bias": False, "rope_parameters": {**HF_YARN, "mscale": 0.7, "mscale_all_dim": 0.7}},
        {**LATENT, **OLD, **YARN, "rope.scaling.yarn_log_multiplier": 0.07, "leading_dense_block_count": 1},
    ),
    "deepseek2-groups-old": (
        "deepseek2", "deepseek-v2-groups", {"attention_bias": False},
        {**LATENT, **OLD, "attention.q_lora_rank": 24, "leading_dense_block_count": 0, "expert_group_count": 4,
         "expert_group_used_count": 2},
    ),
    "deepseek3": (
        "deepseek2", "deepseek-v3", {"rope_parameters": {**HF_YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
        {**LATENT, **NEW, **YARN, "rope.scaling.yarn_log_multiplier": 0.1, "attention.q_lora_rank": 24,
         "leading_dense_block_count": 1, "expert_group_count": 4, "expert_group_used_count": 2,
         "expert_weights_scale": 2.5, "expert_weights_norm": True, "expert_gating_func": 2},
    ),
}  # fmt: skip


def write_moe_gguf(path: Path, kind: str, reference: Any, quantised: Kind | None = None, **overrides: Any) -> None:
    """`reference` as a file; experts in the quantised type, and the reference given the rounded values."""
    architecture, config = MODELS[kind][0], reference.config
    writer = begin_moe_gguf(path, kind, config, **overrides)
    names = gguf.get_tensor_name_map(ARCHITECTURES[architecture], config.num_hidden_layers)
    for name, parameter in (*reference.named_parameters(), *reference.named_buffers()):
        for part, values in _parts(architecture, name, parameter.data, config):
            stored = names.get_name(part, try_suffixes=(".weight", ".bias"))
            assert stored is not None, part
            if quantised is not None and "_exps.weight" in stored:
                data = gguf.quants.quantize(np.ascontiguousarray(values.numpy()), quantised)
                values.copy_(torch.from_numpy(gguf.quants.dequantize(data, quantised).copy()))
                writer.add_tensor(stored, data, raw_dtype=quantised)
            else:
                writer.add_tensor(stored, np.ascontiguousarray(values.numpy()))
    finish_gguf(writer)


def begin_moe_gguf(path: Path, kind: str, config: Any, **overrides: Any) -> gguf.GGUFWriter:
    """Everything but the tensors of a model with that configuration."""
    architecture, _, _, fields = MODELS[kind]
    writer = gguf.GGUFWriter(path, architecture)
    sizes = {
        "block_count": config.num_hidden_layers, "context_length": 512, "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size, "attention.head_count": 4,
        "expert_used_count": config.num_experts_per_tok, "attention.layer_norm_rms_epsilon": 1e-4,
        "expert_count": _num_experts(config),
        "expert_feed_forward_length": config.intermediate_size if architecture == "gpt-oss" else
            getattr(config, "moe_intermediate_size", 0),
    }  # fmt: skip
    adders = {int: writer.add_uint32, str: writer.add_string, bool: writer.add_bool, float: writer.add_float32}
    for key, value in {**sizes, **fields, **overrides}.items():
        adders[type(value)](f"{architecture}.{key}", value)
    add_byte_tokenizer(writer)
    return writer


def finish_gguf(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def save_reference(directory: Path, kind: str, **changes: Any) -> Any:
    """What such a file is made of, one of MODELS, saved as a directory too."""
    _, model, config, _ = MODELS[kind]
    return save_moe(directory, model, **{**config, **changes})


def _num_experts(config: Any) -> int:
    return getattr(config, "n_routed_experts", None) or config.num_local_experts


def _parts(architecture: str, name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """One tensor of the reference, under the names and in the order of a converter; views, to give values back to."""
    if "inv_freq" in name:
        return
    if ".experts." in name:
        yield from _experts(architecture, name, tensor)
    elif "kv_b_proj" in name and architecture == "deepseek2" and config.model_type == "deepseek_v3":
        heads = tensor.view(4, -1, config.kv_lora_rank)
        yield name.replace("kv_b_proj", "k_b_proj"), heads[:, : config.qk_nope_head_dim].transpose(1, 2)
        yield name.replace("kv_b_proj", "v_b_proj"), heads[:, config.qk_nope_head_dim :]
    elif architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
        heads = 4 if ".q_proj." in name else 2
        yield name, tensor.view(heads, 2, len(tensor) // heads // 2, -1).transpose(1, 2).reshape(tensor.shape)
    else:
        yield (
            name.replace("e_score_correction_bias", "e_score_correction.bias").replace("sinks", "sinks.weight"),
            tensor,
        )


def _experts(architecture: str, name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """GPT-OSS has matrices with inputs as rows, gate and up by turns; the others outputs as rows, gate before up."""
    kind = "bias" if name.endswith("_bias") else "weight"
    name = name.removesuffix("_bias")
    is_gpt_oss = architecture == "gpt-oss"
    tensor = tensor.transpose(1, 2) if is_gpt_oss and kind == "weight" else tensor
    if name.endswith("down_proj"):
        yield f"{name}.{kind}", tensor
        return
    half = tensor.shape[1] // 2
    gate, up = (slice(0, None, 2), slice(1, None, 2)) if is_gpt_oss else (slice(half), slice(half, None))
    yield name.replace("gate_up_proj", f"gate_proj.{kind}"), tensor[:, gate]
    yield name.replace("gate_up_proj", f"up_proj.{kind}"), tensor[:, up]
