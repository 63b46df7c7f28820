"""Configurations as they were published, in the spelling of their day, and as `transformers` writes them now, describe
the same model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from engine.formats.fields import Fields, read_json_object
from engine.models.registry import architecture_of_config
from engine.rope_spec import DynamicRopeScaling, LongRopeScaling
from engine.spec import AttentionSpec, ModelSpec

COMMON = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "vocab_size": 1000}
PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama 2": {"model_type": "llama", "max_position_embeddings": 4096, "num_key_value_heads": 8, "rope_scaling": None},
    "Llama 3.1": {
        "model_type": "llama", "max_position_embeddings": 131072, "num_key_value_heads": 2, "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
    },
    "Llama, dynamic": {
        "model_type": "llama", "max_position_embeddings": 2048, "rope_scaling": {"type": "dynamic", "factor": 4.0}
    },
    "Mistral 7B v0.1": {
        "model_type": "mistral", "max_position_embeddings": 32768, "num_key_value_heads": 2, "sliding_window": 4096,
        "rope_theta": 10000.0,
    },
    "Mistral 7B v0.3": {
        "model_type": "mistral", "max_position_embeddings": 32768, "num_key_value_heads": 2, "sliding_window": None,
        "rope_theta": 1000000.0,
    },
    "Qwen 2.5": {
        "model_type": "qwen2", "max_position_embeddings": 32768, "num_key_value_heads": 2, "rope_theta": 1000000.0,
        "use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 28, "tie_word_embeddings": True,
    },
    "Qwen 2.5, yarn": {
        "model_type": "qwen2", "max_position_embeddings": 32768, "num_key_value_heads": 2, "rope_theta": 1000000.0,
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
    },
    "Qwen 3": {
        "model_type": "qwen3", "max_position_embeddings": 40960, "num_key_value_heads": 2, "head_dim": 128,
        "rope_theta": 1000000, "rope_scaling": None, "attention_bias": False, "use_sliding_window": False,
        "sliding_window": None, "max_window_layers": 28,
    },
    "Gemma 2": {
        "model_type": "gemma2", "max_position_embeddings": 8192, "num_key_value_heads": 4, "head_dim": 256,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 144, "sliding_window": 4096,
        "rope_theta": 10000.0,
    },
    "Gemma 3": {
        "model_type": "gemma3_text", "max_position_embeddings": 32768, "num_key_value_heads": 1, "head_dim": 256,
        "attn_logit_softcapping": None, "final_logit_softcapping": None, "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256, "rope_local_base_freq": 10000, "rope_theta": 1000000, "rope_scaling": None,
        "sliding_window": 512, "sliding_window_pattern": 6,
    },
    "Gemma 3, long": {
        "model_type": "gemma3_text", "max_position_embeddings": 131072, "num_key_value_heads": 4, "head_dim": 256,
        "query_pre_attn_scalar": 168, "rope_local_base_freq": 10000.0, "rope_theta": 1000000.0,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024, "sliding_window_pattern": 6,
    },
    "Phi 3 mini 4k": {
        "model_type": "phi3", "max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
        "num_key_value_heads": 8, "rope_scaling": None, "rope_theta": 10000.0, "sliding_window": 2047,
    },
    "Phi 3 mini 128k": {
        "model_type": "phi3", "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
        "num_key_value_heads": 8, "rope_theta": 10000.0, "sliding_window": 262144,
        "rope_scaling": {"long_factor": [1.0 + i for i in range(16)], "short_factor": [1.0] * 16, "type": "longrope"},
    },
    "Phi 4 mini": {
        "model_type": "phi3", "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
        "num_key_value_heads": 2, "rope_theta": 10000.0, "sliding_window": 262144, "partial_rotary_factor": 0.75,
        "rope_scaling": {"long_factor": [2.0] * 12, "short_factor": [1.0] * 12, "type": "longrope"},
        "tie_word_embeddings": True,
    },
}  # fmt: skip


def _spec(config: Fields) -> ModelSpec:
    return architecture_of_config(config).read_config(config)


def _published(name: str) -> ModelSpec:
    layers = {"num_hidden_layers": 13, "rms_norm_eps": 1e-6}
    return _spec(Fields(Path("config.json"), {**COMMON, **layers, **PUBLISHED[name]}))


def _attention(spec: ModelSpec, layer: int) -> AttentionSpec:
    attention = spec.layers[layer].attention
    assert isinstance(attention, AttentionSpec)
    return attention


@pytest.mark.parametrize("name", PUBLISHED)
def test_then_and_now_describe_the_same_model(tmp_path: Path, name: str) -> None:
    values = json.loads(json.dumps({**COMMON, "num_hidden_layers": 13, "rms_norm_eps": 1e-6, **PUBLISHED[name]}))
    config = transformers.AutoConfig.for_model(**values)
    config.save_pretrained(tmp_path)
    rewritten = read_json_object(tmp_path / "config.json")
    assert "rope_scaling" not in rewritten.values
    assert _spec(rewritten) == _published(name)


def test_published_fields_mean_what_their_models_do() -> None:
    gemma2, gemma3 = _published("Gemma 2"), _published("Gemma 3")
    assert [_attention(gemma2, i).window for i in range(3)] == [4096, None, 4096]
    assert (_attention(gemma2, 0).scale, _attention(gemma2, 0).softcap, gemma2.logit_softcap) == (1 / 12, 50.0, 30.0)
    assert gemma2.tie_embeddings
    assert gemma2.embedding_scale == 16.0
    assert [_attention(gemma3, i).window for i in range(7)] == [512] * 5 + [None, 512]
    thetas = [rope.theta for i in (4, 5) if (rope := _attention(gemma3, i).rope)]
    assert thetas == [10000.0, 1000000.0]
    assert _attention(_published("Qwen 2.5"), 12).window is None
    assert _published("Qwen 2.5, yarn").reach == 131072
    dynamic = _published("Llama, dynamic")
    assert dynamic.reach == 8192
    assert isinstance(_attention(dynamic, 0).rope.scaling, DynamicRopeScaling)  # type: ignore[union-attr]


def test_the_served_length_chooses_the_factors() -> None:
    phi4 = _published("Phi 4 mini")
    rope = _attention(phi4, 0).rope
    assert rope is not None
    assert rope.rotary_dim == 24
    assert isinstance(rope.scaling, LongRopeScaling)
    for length, factor in ((4096, 1.0), (4097, 2.0)):
        served = _attention(phi4.served(length), 0).rope
        assert served is not None
        assert served.scaling is not None
        assert served.scaling.factors == (factor,) * 12  # type: ignore[union-attr]
    assert phi4.served(4000) == phi4.served(4096)
