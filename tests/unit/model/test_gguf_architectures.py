"""GGUF files of every architecture, written with the names of the format's own package, give the logits of their
weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from test_architecture_parity import GEMMA, LONG, SMALL, model, relative_error
from tiny_models import PagedRun, add_byte_tokenizer

from engine.loader import load_model

TOKENS = torch.randint(0, 320, (75,), generator=torch.Generator().manual_seed(3)).tolist()
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "qwen2": (model("Qwen2", SMALL), {}),
    "qwen2 yarn": (
        model(
            "Qwen2",
            SMALL,
            rope_parameters={
                "rope_type": "yarn", "rope_theta": 900.0, "factor": 4.0, "original_max_position_embeddings": 32
            },
        ),
        {"rope.freq_base": 900.0, "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
         "rope.scaling.original_context_length": 32},
    ),
    "qwen3": (model("Qwen3", rope_parameters={"rope_type": "linear", "rope_theta": 900.0, "factor": 3.0}),
              {"rope.freq_base": 900.0, "rope.scaling.type": "linear", "rope.scaling.factor": 3.0}),
    "gemma2": (
        model("Gemma2", {**GEMMA, "query_pre_attn_scalar": 12}, attn_logit_softcapping=2.0,
              final_logit_softcapping=3.0),
        {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "attention.sliding_window": 24},
    ),
    "gemma3": (
        model("Gemma3", {**GEMMA, "query_pre_attn_scalar": 12}, num_hidden_layers=7),
        {"rope.freq_base": 1e6, "attention.sliding_window": 24},
    ),
    "phi3": (
        model("Phi3", SMALL, pad_token_id=0, sliding_window=24, rope_parameters=LONG,
              original_max_position_embeddings=64),
        {"rope.freq_base": 500.0, "rope.dimension_count": 8, "attention.sliding_window": 24,
         "rope.scaling.original_context_length": 64,
         "rope.scaling.attn_factor": (1 + np.log(512 / 64) / np.log(64)) ** 0.5},
    ),
}  # fmt: skip


def _write(path: Path, name: str, reference: Any, fields: dict[str, Any]) -> None:
    architecture, config = name.split(maxsplit=1)[0], reference.config
    writer = gguf.GGUFWriter(path, architecture)
    sizes = {
        "block_count": config.num_hidden_layers, "context_length": 512, "embedding_length": 48,
        "feed_forward_length": 72, "attention.head_count": 4, "attention.head_count_kv": 2,
        "attention.key_length": 12, "attention.value_length": 12,
    }  # fmt: skip
    for key, value in {**sizes, "attention.layer_norm_rms_epsilon": config.rms_norm_eps, **fields}.items():
        add = {int: writer.add_uint32, str: writer.add_string}.get(type(value), writer.add_float32)
        add(f"{architecture}.{key}", value)
    add_byte_tokenizer(writer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    for ours, parameter in reference.named_parameters():
        values = parameter.detach().numpy()
        if "norm" in ours and "gemma" in architecture:
            values = values + 1
        stored = names.get_name(ours, try_suffixes=(".weight", ".bias"))
        assert stored is not None, ours
        writer.add_tensor(stored, np.ascontiguousarray(values))
    if architecture == "phi3":
        writer.add_tensor("rope_factors_short.weight", np.array(LONG["short_factor"], np.float32))
        writer.add_tensor("rope_factors_long.weight", np.array(LONG["long_factor"], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", MODELS)
def test_gguf_files_of_an_architecture_give_the_logits_of_transformers(tmp_path: Path, name: str) -> None:
    build, fields = MODELS[name]
    reference = build()
    _write(tmp_path / "m.gguf", name, reference, fields)
    loaded = load_model(tmp_path / "m.gguf", served_name=None, dtype="float32", max_model_len=None)
    with torch.inference_mode():
        expected = reference(torch.tensor([TOKENS])).logits[0, -1]
    assert relative_error(PagedRun(loaded.model, 4).step([(0, 0, TOKENS)])[0], expected) < 1e-4
