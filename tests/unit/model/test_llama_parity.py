"""The paged model computes what `transformers` computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CONFIG, PagedRun, byte_tokenizer, forward, save_llama
from transformers import Qwen2Config, Qwen2ForCausalLM

from engine.loader import load_model

LLAMA3_SCALING = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
PROMPT = torch.randint(0, 320, (75,), generator=torch.Generator().manual_seed(3)).tolist()


def _relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _assert_parity(directory: Path, reference: Any) -> None:
    """Prefill in three chunks, then 32 greedy decode steps."""
    loaded = load_model(directory, served_name=None, dtype="float32", max_model_len=None)
    run = PagedRun(loaded.model, num_blocks=6)
    tokens = list(PROMPT)
    run.step([(0, 0, tokens[:20])])
    run.step([(0, 20, tokens[20:70])])
    logits = run.step([(0, 70, tokens[70:])])[0]
    for _ in range(32):
        with torch.inference_mode():
            expected = reference(torch.tensor([tokens])).logits[0, -1]
        assert _relative_error(logits, expected) < 1e-4
        tokens.append(int(expected.argmax()))
        logits = run.step([(0, len(tokens) - 1, tokens[-1:])])[0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 4, "tie_word_embeddings": True},
        {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}},
        {"rope_parameters": LLAMA3_SCALING},
        {"head_dim": 16, "shard": "40KB"},
    ],
    ids=["plain", "tied", "biases", "linear-rope", "llama3-rope", "sharded"],
)
def test_prefill_chunks_and_decode_match_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    reference = save_llama(tmp_path, **changes)
    assert ("shard" in changes) == (tmp_path / "model.safetensors.index.json").exists()
    _assert_parity(tmp_path, reference)


def test_qwen2_with_its_qkv_biases_matches_transformers(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = {key: value for key, value in CONFIG.items() if key != "head_dim"}
    reference = Qwen2ForCausalLM(Qwen2Config(**config)).float().eval()
    for layer in reference.model.layers:
        torch.nn.init.normal_(layer.self_attn.q_proj.bias)
    reference.save_pretrained(tmp_path)
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    _assert_parity(tmp_path, reference)


def test_rows_come_for_slices_that_want_logits_only(tmp_path: Path) -> None:
    from engine.steps.batch import SequenceSlice, StepBatch

    save_llama(tmp_path)
    model = load_model(tmp_path, served_name=None, dtype="float32", max_model_len=None).model
    layout = model.kv_layout(32, "bfloat16")
    assert layout.dtype == "bfloat16"
    cache = torch.zeros(3, *layout.block_shape, dtype=torch.bfloat16)
    parts = [SequenceSlice([1, 2, 3], 0, [block], wants_logits=block == 1) for block in range(3)]
    assert forward(model, StepBatch(tuple(parts)), cache).shape == (1, 320)
    silent = forward(model, StepBatch((parts[0],)), cache)
    assert silent.shape == (0, 320)
    assert silent.dtype == torch.float32
