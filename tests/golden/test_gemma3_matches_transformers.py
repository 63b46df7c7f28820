"""Gemma 3's real weights give their text, and the logits that `transformers` computes from the same values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import Gemma3ForCausalLM, Gemma3TextConfig
from transformers.initialization import no_init_weights

from engine.blocks.kv_cache import KVCache
from engine.formats.gguf_file import GgufFile
from engine.loader import LoadedModel, load_model
from engine.steps.batch import SequenceSlice, StepBatch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NUM_TOKENS = 24
PROMPT = "The capital of France is"
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.layers": "blk",
    "self_attn.o_proj": "attn_output",
    "self_attn.": "attn_",
    "mlp.": "ffn_",
    "_proj": "",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
TEXT = " the capital of the country of France. It is the largest city in France and the second largest city in Europe."


@pytest.fixture(scope="module")
def loaded(gemma3_gguf: Path) -> LoadedModel:
    return load_model(gemma3_gguf, served_name=None, dtype="float32", max_model_len=1024, activations="float32")


@pytest.fixture(scope="module")
def referee(gemma3_gguf: Path) -> Any:
    """Its own class and configuration; reading this file by itself takes it two minutes."""
    file = GgufFile(gemma3_gguf)
    config = Gemma3TextConfig(
        vocab_size=262_144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=512,
        max_position_embeddings=32_768,
    )
    with no_init_weights():
        model = Gemma3ForCausalLM(config).float().eval()
    model.tie_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.from_numpy(file.tensor(_gguf_name(name), tuple(parameter.shape)))
            parameter.copy_(values - 1 if "norm" in name else values)
    return model


def _gguf_name(name: str) -> str:
    for theirs, stored in GGUF_NAMES.items():
        name = name.replace(theirs, stored)
    return name


def _bind_cache(loaded: LoadedModel, num_blocks: int, kv_dtype: str = "float32") -> None:
    """float32 where logits are compared: the referee does not round keys and values."""
    loaded.model.bind_kv_cache(KVCache.zeros(loaded.model.kv_layout(32, kv_dtype), num_blocks))


def _logits(loaded: LoadedModel, start: int, tokens: list[int]) -> torch.Tensor:
    blocks = range(-(-(start + len(tokens)) // 32))
    batch = StepBatch((SequenceSlice(tokens, start, blocks, wants_logits=True),))
    return torch.from_numpy(loaded.model.forward(batch)[0])


def test_the_text_is_the_models_and_every_logit_that_of_transformers(loaded: LoadedModel, referee: Any) -> None:
    tokenizer = Tokenizer.from_str(loaded.card.tokenizer_json)
    assert loaded.card.add_bos
    assert loaded.card.bos_token_id is not None
    tokens = [loaded.card.bos_token_id, *tokenizer.encode(PROMPT, add_special_tokens=False).ids]
    prompt = len(tokens)
    _bind_cache(loaded, 2)
    rows = [_logits(loaded, 0, tokens)]
    while len(tokens) < prompt + NUM_TOKENS:
        tokens.append(int(rows[-1].argmax()))
        rows.append(_logits(loaded, len(tokens) - 1, tokens[-1:]))
    assert tokenizer.decode(tokens[prompt:]).startswith(TEXT)
    with torch.inference_mode():
        expected = referee(torch.tensor([tokens])).logits[0, prompt - 1 :]
    error = (torch.stack(rows) - expected).abs().max(dim=1).values / expected.abs().max(dim=1).values
    assert float(error.max()) < 1e-4


def test_beyond_the_window_logits_are_still_those_of_transformers(loaded: LoadedModel, referee: Any) -> None:
    tokens = torch.randint(1000, 200_000, (600,), generator=torch.Generator().manual_seed(2)).tolist()
    _bind_cache(loaded, 19)
    _logits(loaded, 0, tokens[:512])
    found = _logits(loaded, 512, tokens[512:])
    with torch.inference_mode():
        expected = referee(torch.tensor([tokens]), logits_to_keep=1).logits[0, -1]
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4


def test_text_survives_its_tokens(loaded: LoadedModel) -> None:
    tokenizer = Tokenizer.from_str(loaded.card.tokenizer_json)
    text = "Hello  world\n\n\tfoo 123, 日本語 é 🤗 <b>x</b>"
    encoded = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(encoded.ids) == text
    assert encoded.tokens[:6] == ["Hello", "  ", "world", "\n\n", "\t", "foo"]
    assert tokenizer.encode("<end_of_turn>", add_special_tokens=False).ids == [106]
    assert loaded.card.eos_token_ids == (1, 106)
