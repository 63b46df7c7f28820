"""A tiny Llama with random weights in Hugging Face form: real files, real tokenizer, no meaning in its words.

Weights are wide enough that greedy answers depend strongly on every key and value read.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTER = 3, 64, 4, 2, 16, 128
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MAX_MODEL_LEN = 2048
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_model(folder: Path, seed: int = 0, head_dim: int = HEAD_DIM) -> Path:
    """Writes config.json, model.safetensors, tokenizer.json and tokenizer_config.json into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    vocab_size = tokenizer.get_vocab_size(with_added_tokens=True)
    (folder / "config.json").write_text(json.dumps(_config(vocab_size, head_dim)))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": SPECIALS[1], "eos_token": SPECIALS[2], "chat_template": TEMPLATE})
    )
    save_file(_weights(vocab_size, seed, head_dim), folder / "model.safetensors")
    return folder


def _tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={piece: index for index, piece in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(piece, special=True) for piece in SPECIALS])
    return tokenizer


def _config(vocab_size: int, head_dim: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": MAX_MODEL_LEN,
        "vocab_size": vocab_size,
        "tie_word_embeddings": False,
        "bos_token_id": vocab_size - 2,
        "eos_token_id": vocab_size - 1,
        "torch_dtype": "float32",
    }


def _weights(vocab_size: int, seed: int, head_dim: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    wide = 2.0 / HIDDEN**0.5
    weights = {
        "model.embed_tokens.weight": normal(vocab_size, HIDDEN, scale=1.0),
        "model.norm.weight": torch.ones(HIDDEN),
        "lm_head.weight": normal(vocab_size, HIDDEN, scale=wide),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        weights |= {
            prefix + "input_layernorm.weight": torch.ones(HIDDEN),
            prefix + "post_attention_layernorm.weight": torch.ones(HIDDEN),
            prefix + "self_attn.q_proj.weight": normal(HEADS * head_dim, HIDDEN, scale=wide),
            prefix + "self_attn.k_proj.weight": normal(KV_HEADS * head_dim, HIDDEN, scale=wide),
            prefix + "self_attn.v_proj.weight": normal(KV_HEADS * head_dim, HIDDEN, scale=wide),
            prefix + "self_attn.o_proj.weight": normal(HIDDEN, HEADS * head_dim, scale=wide),
            prefix + "mlp.gate_proj.weight": normal(INTER, HIDDEN, scale=wide),
            prefix + "mlp.up_proj.weight": normal(INTER, HIDDEN, scale=wide),
            prefix + "mlp.down_proj.weight": normal(HIDDEN, INTER, scale=2.0 / INTER**0.5),
        }
    return weights
