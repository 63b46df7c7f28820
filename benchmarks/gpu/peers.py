"""What other engines make of the same GPU and shapes: `transformers`' continuous batching, where it is installed."""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass
from typing import Any

import torch

PROMPT_TOKENS, NEW_TOKENS, REQUESTS = 128, 128, 64
LLAMA_8B: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PeerRate:
    """`error` says why there is none."""

    name: str
    output_tokens_per_s: float
    seconds: float
    error: str | None = None


def transformers_rate(
    requests: int = REQUESTS, new_tokens: int = NEW_TOKENS, shapes: dict[str, Any] | None = None, device: str = "cuda"
) -> PeerRate:
    """Greedy answers of one length to random prompts of one length, all asked at once, by a Llama of these shapes, by
    default 8B's, with random weights. The second of two batches is timed: before the first the engine sizes its cache
    and captures its graphs, which it keeps."""
    if importlib.util.find_spec("transformers") is None:
        return PeerRate("transformers", 0.0, 0.0, "is not installed")
    import transformers  # noqa: PLC0415

    name = f"transformers {transformers.__version__}, continuous batching, 8B, {PROMPT_TOKENS}/{new_tokens}"
    config = transformers.LlamaConfig(**(shapes or LLAMA_8B))
    with torch.device(device):
        model = transformers.LlamaForCausalLM._from_config(
            config, dtype=torch.bfloat16, attn_implementation="sdpa"
        ).eval()
    vocabulary, generator = config.vocab_size, torch.Generator().manual_seed(0)
    chosen = transformers.GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    seconds, count = 0.0, 0
    try:
        for _ in range(2):
            prompts = torch.randint(0, vocabulary, (requests, PROMPT_TOKENS), generator=generator).tolist()
            seconds, count = _answered(model, prompts, chosen)
    finally:
        getattr(model, "destroy_cached_continuous_batching_manager", lambda: None)()  # newer versions keep one
    if count != requests * new_tokens:
        return PeerRate(name, 0.0, seconds, f"gave {count} tokens, expected {requests * new_tokens}")
    return PeerRate(name, count / seconds, seconds)


def _answered(model: Any, prompts: list[list[int]], chosen: Any) -> tuple[float, int]:
    """(seconds, tokens) of one batch."""
    began = time.perf_counter()
    answers = model.generate_batch(prompts, generation_config=chosen, persistent_manager=True, progress_bar=False)
    return time.perf_counter() - began, sum(len(answer.generated_tokens) for answer in answers.values())
