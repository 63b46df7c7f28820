"""Whatever shape a model has, it computes what `transformers` computes, however its prompt is cut."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_architecture_parity import model, relative_error
from tiny_models import PagedRun, save_model

from engine.loader import load_model

NAMES = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma2", "Gemma3", "Phi3")
TOKENS = 70


@st.composite
def ropes(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """Of the architectures whose every layer turns alike."""
    theta = {"rope_theta": draw(st.sampled_from([50.0, 1e4, 1e6]))}
    kinds = ["default"] if name == "Phi3" else ["default", "linear", "llama3", "yarn"]
    kind = draw(st.sampled_from(kinds))
    if kind == "default":
        return {"rope_type": kind, **theta}
    scaled = {"rope_type": kind, "factor": draw(st.sampled_from([2.0, 7.5])), **theta}
    if kind == "linear":
        return scaled
    scaled["original_max_position_embeddings"] = draw(st.sampled_from([16, 40]))
    if kind == "llama3":
        return {**scaled, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return {**scaled, "beta_fast": draw(st.sampled_from([4.0, 32.0])), "truncate": draw(st.booleans())}


@st.composite
def configs(draw: st.DrawFn, name: str) -> dict[str, Any]:
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    heads, head_dim = kv_heads * group, draw(st.sampled_from([4, 6, 16, 20, 64]))
    config: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": heads * (head_dim if name in ("Qwen2", "Phi3") else draw(st.sampled_from([7, 16, 22]))),
        "intermediate_size": draw(st.sampled_from([17, 64, 100])),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 128,
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-2])),
        "tie_word_embeddings": draw(st.booleans()),
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": 0,
    }
    # As large as leaves float32 its precision: attention is not to choose one key of many by rounding errors.
    config["initializer_range"] = 1.5 * config["hidden_size"] ** -0.5
    if name not in ("Qwen2", "Phi3"):
        config["head_dim"] = head_dim
    if name != "Gemma3":
        config["rope_parameters"] = draw(ropes(name))
    if name in ("Mistral", "Gemma2", "Gemma3", "Phi3"):
        config["sliding_window"] = draw(st.integers(1, 90))
    if name in ("Gemma2", "Gemma3"):
        config["query_pre_attn_scalar"] = draw(st.integers(1, 40))
        config["attention_bias"] = draw(st.booleans())
    if name in ("Qwen2", "Qwen3") and draw(st.booleans()):
        window, first = draw(st.integers(1, 90)), draw(st.integers(0, 2))
        config |= {"use_sliding_window": True, "sliding_window": window, "max_window_layers": first}
    return config


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape_matches_transformers_in_any_cut(name: str, data: st.DataObject) -> None:
    reference = model(name, data.draw(configs(name)))()
    cuts = sorted(data.draw(st.sets(st.integers(1, TOKENS - 1), max_size=6)))
    tokens = torch.randint(0, 320, (TOKENS,), generator=torch.Generator().manual_seed(len(cuts))).tolist()
    with TemporaryDirectory() as directory:
        save_model(Path(directory), reference)
        served = load_model(Path(directory), served_name=None, dtype="float32", max_model_len=None).model
    run, whole = PagedRun(served, 4), PagedRun(served, 4).step([(0, 0, tokens)])[0]
    for start, end in zip([0, *cuts], [*cuts, TOKENS], strict=True):
        logits = run.step([(0, start, tokens[start:end])])[0]
    with torch.inference_mode():
        expected = reference(torch.tensor([tokens])).logits[0, -1]
    assert relative_error(logits, expected) < 1e-4
    assert torch.equal(logits, whole)
