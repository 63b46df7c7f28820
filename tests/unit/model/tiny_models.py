"""Tiny random models, written as real Hugging Face directories by `transformers`, and a driver for the paged path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from engine.blocks.kv_cache import KVCache
from engine.models.causal_lm import CausalLM
from engine.steps.batch import SequenceSlice, StepBatch

BLOCK_TOKENS = 32
CONFIG: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": 256,
    "eos_token_id": 257,
}


def save_llama(directory: Path, *, seed: int = 0, shard: str = "1GB", **changes: Any) -> LlamaForCausalLM:
    """A random model in `directory`, complete with a byte-level tokenizer; returns the reference."""
    torch.manual_seed(seed)
    reference = LlamaForCausalLM(LlamaConfig(**{**CONFIG, **changes})).float().eval()
    for name, parameter in reference.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    save_model(directory, reference, shard)
    return reference


def save_model(directory: Path, reference: Any, shard: str = "1GB") -> None:
    """A complete Hugging Face directory of it, with a byte-level tokenizer."""
    reference.save_pretrained(directory, max_shard_size=shard)
    byte_tokenizer().save(str(directory / "tokenizer.json"))


def byte_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def add_byte_tokenizer(writer: gguf.GGUFWriter) -> None:
    """`byte_tokenizer` with one merge, as GGUF files hold it."""
    tokens = sorted(byte_tokenizer().get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*(token for token, _ in tokens), "ab"])
    writer.add_token_types([*(3 if token in ("<s>", "</s>") else 1 for token, _ in tokens), 1])
    writer.add_token_merges(["a b"])


def forward(model: CausalLM, batch: StepBatch, kv_cache: torch.Tensor) -> torch.Tensor:
    """One step over a cache `[num_blocks, *layout.block_shape]` that is the model's from now on."""
    layout = model.kv_layout(kv_cache.shape[4], str(kv_cache.dtype).removeprefix("torch."))
    model.bind_kv_cache(KVCache(layout, kv_cache.view(torch.uint8).numpy().reshape(len(kv_cache), -1)))
    return torch.from_numpy(model.forward(batch))


class PagedRun:
    """Feeds a model step by step over one shared cache filled with NaN: nothing unwritten may be read."""

    def __init__(
        self, model: CausalLM, num_blocks: int, kv_dtype: str = "auto", prompts: Mapping[int, int] | None = None
    ) -> None:
        """`kv_dtype`: who holds logits of narrow weights against others says float32, for only we round keys and
        values. `prompts`: length of each sequence's prompt, by default without end."""
        layout = model.kv_layout(BLOCK_TOKENS, kv_dtype)
        self._model = model
        self._prompts = prompts or {}
        self._free = list(torch.randperm(num_blocks, generator=torch.Generator().manual_seed(7)).tolist())
        self._tables: dict[int, list[int]] = {}
        self.kv_cache = torch.full((num_blocks, *layout.block_shape), torch.nan, dtype=getattr(torch, layout.dtype))

    def step(self, parts: Sequence[tuple[int, int, Sequence[int]]]) -> torch.Tensor:
        """`parts` are (sequence, start, tokens); returns the logits of every part's last token."""
        slices = []
        for sequence, start, tokens in parts:
            table = self._tables.setdefault(sequence, [])
            while len(table) * BLOCK_TOKENS < start + len(tokens):
                table.append(self._free.pop())
            prompt = self._prompts.get(sequence, 1 << 40)
            slices.append(SequenceSlice(list(tokens), start, tuple(table), True, num_prompt_tokens=prompt))
        return forward(self._model, StepBatch(tuple(slices)), self.kv_cache)

    def keys_and_values(self, sequence: int, length: int) -> torch.Tensor:
        """`[layers, planes, kv_heads, length, head_dim]`."""
        blocks = self.kv_cache[self._tables[sequence]].permute(1, 2, 3, 0, 4, 5)
        return blocks.flatten(3, 4)[:, :, :, :length]
