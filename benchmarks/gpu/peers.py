"""What other engines make of the same GPU and shapes: `transformers`' continuous batching, where it is installed."""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass

import torch

PROMPT_TOKENS, NEW_TOKENS, REQUESTS = 128, 128, 64


@dataclass(frozen=True, slots=True)
class PeerRate:
    """`error` says why there is none."""

    name: str
    output_tokens_per_s: float
    seconds: float
    error: str | None = None


def transformers_rate(requests: int = REQUESTS) -> PeerRate:
    """Greedy answers of one length to random prompts of one length, all asked at once, by a Llama of 8B's shapes with
    random weights. The second of two batches is timed: the first allocates and captures."""
    if importlib.util.find_spec("transformers") is None:
        return PeerRate("transformers", 0.0, 0.0, "is not installed")
    import transformers  # noqa: PLC0415

    name = f"transformers {transformers.__version__}, continuous batching, 8B, {PROMPT_TOKENS}/{NEW_TOKENS}"
    torch.set_default_dtype(torch.bfloat16)
    config = transformers.LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128256, max_position_embeddings=8192,
    )  # fmt: skip
    with torch.device("cuda"):
        model = transformers.LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
    model.eval()
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(1000, 100000, (requests, PROMPT_TOKENS), generator=generator).tolist()
    chosen = transformers.GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0)
    seconds, count = 0.0, 0
    for _ in range(2):
        began = time.perf_counter()
        answers = model.generate_batch(prompts, generation_config=chosen)
        seconds = time.perf_counter() - began
        count = sum(len(answer.generated_tokens) for answer in answers.values())
    if count != requests * NEW_TOKENS:
        return PeerRate(name, 0.0, seconds, f"gave {count} tokens, expected {requests * NEW_TOKENS}")
    return PeerRate(name, count / seconds, seconds)
