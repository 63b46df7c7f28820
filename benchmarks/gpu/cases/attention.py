"""Attention over the paged cache: many sequences' last token, and a prompt."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.cases.case import HEAD_DIM, HEADS, KV_HEADS, Call, Case, drawn, paged, require_memory, sets
from engine.ops.cuda.attention import (
    Scores,
    decode_attention,
    prefill_attention,
    prefill_attention_sm90,
    workspace_bytes,
)
from engine.ops.cuda.attention_kernels import Prefill
from engine.ops.cuda.library import Library

_BATCHES, _CONTEXTS = (1, 8, 32, 64, 128, 256), (1024, 4096, 8192, 32768)
"""Sequences, and tokens of each."""
_PROMPTS = (2048, 8192)
_TARGET_PROMPT = 8192
_KERNELS: dict[str, Prefill] = {
    "prefill_attention_sm90": prefill_attention_sm90,
    "prefill_attention": prefill_attention,
}
_SCORES = Scores(HEAD_DIM**-0.5)


def decode() -> Iterator[Case]:
    for context, batch in itertools.product(_CONTEXTS, _BATCHES):
        moved = batch * context * KV_HEADS * HEAD_DIM * 4 + 2 * batch * HEADS * HEAD_DIM * 2
        name, operations = f"decode attention, batch {batch}, context {context}", 4 * batch * context * HEADS * HEAD_DIM
        make = partial(_decode_calls, batch, context, moved)
        yield Case(name, "decode_attention", moved, operations, make, goal="decode attention")


def prefill() -> Iterator[Case]:
    for tokens, (function, kernel) in itertools.product(_PROMPTS, _KERNELS.items()):
        moved = 2 * tokens * (2 * HEADS + 2 * KV_HEADS) * HEAD_DIM
        operations = 4 * (tokens * (tokens + 1) // 2) * HEADS * HEAD_DIM
        group = f"prefill attention, causal, {tokens} tokens"
        name, make = f"{group}, {function}", partial(_prefill_calls, tokens, kernel)
        rival, goal = partial(_sdpa_calls, tokens), "prefill attention" if tokens == _TARGET_PROMPT else ""
        yield Case(name, function, moved, operations, make, rival, "torch's flash SDPA", goal=goal, group=group)


def _decode_calls(batch: int, context: int, moved: int, library: Library) -> list[Call]:
    size = workspace_bytes(library, batch, HEADS, HEAD_DIM, context)
    workspace = torch.empty(size, dtype=torch.uint8, device="cuda")
    calls: list[Call] = []
    require_memory(moved)
    for _ in sets(moved):
        cache, rows = paged(batch, context, 1)
        q = drawn(batch, HEADS, HEAD_DIM)
        calls.append(partial(decode_attention, library, q, cache, 0, rows, _SCORES, workspace))
    return calls


def _prefill_calls(tokens: int, kernel: Prefill, library: Library) -> list[Call]:
    cache, rows = paged(1, tokens, tokens)
    return [partial(kernel, library, drawn(tokens, HEADS, HEAD_DIM), cache, 0, rows, _SCORES)]


def _sdpa_calls(tokens: int) -> list[Call]:
    q = drawn(1, HEADS, tokens, HEAD_DIM)
    k, v = (drawn(1, KV_HEADS, tokens, HEAD_DIM) for _ in range(2))

    def attend() -> torch.Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    return [attend]
