"""Whatever is wrong with a Hugging Face directory is said by name, with what to do."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_llama

from engine.loader import load_model
from wire.errors import ErrorCode, SpliceError


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_llama(tmp_path)
    return tmp_path


def _refused(path: Path, *, code: ErrorCode = ErrorCode.BAD_MODEL_FILE, max_model_len: int | None = None) -> str:
    with pytest.raises(SpliceError) as caught:
        load_model(path, served_name=None, dtype="float32", max_model_len=max_model_len)
    assert caught.value.code is code
    return caught.value.message


def _edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mamba"}, ["'mamba'", "llama"]),
        ({"hidden_size": None}, ["'hidden_size' is missing"]),
        ({"num_hidden_layers": "two"}, ["'num_hidden_layers' is 'two'", "integer"]),
        ({"num_key_value_heads": 3}, ["multiple of num_kv_heads"]),
        ({"num_attention_heads": 0}, ["num_heads is 0"]),
        ({"hidden_act": "gelu"}, ["'gelu'"]),
        ({"model_type": "mistral", "sliding_window": 0}, ["window is 0"]),
        ({"rope_parameters": {"rope_type": "proportional"}}, ["'proportional'", "longrope"]),
        ({"rope_parameters": {"rope_type": "linear"}}, ["'factor' is missing"]),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, ["rope_parameters", "one rope"]),
        ({"rope_parameters": {"rope_type": "yarn", "factor": -1}}, ["rope factor is -1.0"]),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 0.5}}, ["rope factor is 0.5"]),
        (
            {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 6, "long_factor": [2.0]}},
            ["1 rope factors, expected 6"],
        ),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.45}}, ["5 of head_dim 12"]),
        ({"num_hidden_layers": 10**12}, ["num_hidden_layers", "1000"]),
        ({"model_type": "qwen3"}, ["q_norm", "missing"]),
        ({"model_type": "phi3"}, ["qkv_proj", "missing"]),
        ({"model_type": "phi3", "rope_parameters": {"rope_type": "yarn"}}, ["rope_scaling", "longrope"]),
        ({"model_type": "gemma2", "query_pre_attn_scalar": 12}, ["pre_feedforward_layernorm", "missing"]),
        ({"model_type": "gemma2", "query_pre_attn_scalar": 12, "layer_types": ["full_attention"]}, ["layer_types"]),
        ({"model_type": "gemma2", "use_bidirectional_attention": True}, ["bidirectional"]),
        ({"model_type": "gemma3_text", "query_pre_attn_scalar": 12, "attn_logit_softcapping": 3}, ["softcapping"]),
        (
            {"model_type": "gemma3_text", "query_pre_attn_scalar": 12, "hidden_activation": "relu"},
            ["'relu'", "gelu_pytorch_tanh"],
        ),
        ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
        ({"intermediate_size": 80}, ["gate_proj", "[72, 48]", "[80, 48]"]),
        ({"num_hidden_layers": 3}, ["model.layers.2", "missing"]),
        ({"eos_token_id": 99999}, ["99999"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_configuration_errors_name_the_field(directory: Path, changes: dict[str, Any], words: list[str]) -> None:
    _edit_config(directory, **changes)
    (directory / "generation_config.json").unlink()
    message = _refused(directory)
    assert all(word in message for word in words), message


def test_missing_parts_are_named(directory: Path) -> None:
    (directory / "tokenizer.json").rename(directory / "hidden")
    assert "tokenizer.json" in _refused(directory)
    (directory / "hidden").rename(directory / "tokenizer.json")
    (directory / "model.safetensors").rename(directory / "weights.bin")
    assert "safetensors" in _refused(directory)
    (directory / "config.json").unlink()
    assert "config.json" in _refused(directory)
    assert "no such file" in _refused(directory / "nowhere")


def test_damaged_files_are_named(directory: Path) -> None:
    weights = directory / "model.safetensors"
    raw = weights.read_bytes()
    for size in (0, 5, 100, len(raw) // 2, len(raw) - 1):
        weights.write_bytes(raw[:size])
        assert "model.safetensors" in _refused(directory)
    weights.write_bytes(raw)
    (directory / "tokenizer.json").write_text('{"model": 1}')
    assert "tokenizer.json" in _refused(directory)
    (directory / "config.json").write_bytes(b"\xff{")
    assert "config.json" in _refused(directory)


def test_integer_weights_are_refused_by_name(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, directory / "model.safetensors")
    message = _refused(directory)
    assert "model.norm.weight" in message
    assert "I8" in message


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    save_llama(tmp_path, shard="40KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert shard.name in _refused(tmp_path)


def test_the_served_name_defaults_to_the_whole_directory_name(directory: Path) -> None:
    renamed = directory.rename(directory.parent / "Tiny-1.7B")
    assert load_model(renamed, served_name=None, dtype="float32", max_model_len=None).card.name == "Tiny-1.7B"


def test_a_context_longer_than_the_models_is_a_setting_error(directory: Path) -> None:
    assert "512" in _refused(directory, code=ErrorCode.BAD_SETTING, max_model_len=513)


def test_tensors_without_a_use_are_told_of(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="engine.loader"):
        load_model(directory, served_name=None, dtype="float32", max_model_len=None)
        assert not caplog.records
        tensors = load_file(directory / "model.safetensors")
        tensors["model.layers.1.self_attn.q_proj.bias"] = torch.ones(48)
        save_file(tensors, directory / "model.safetensors")
        load_model(directory, served_name=None, dtype="float32", max_model_len=None)
    assert "1 tensors are no part of llama" in caplog.text
    assert "model.layers.1.self_attn.q_proj.bias" in caplog.text
