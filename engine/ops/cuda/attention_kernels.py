"""Which kernel attends the rows of prompts: the faster one where it computes what the others do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from engine.ops.cuda.attention import (
    SM90_HEAD_DIMS,
    PagedRows,
    Scores,
    prefill_attention,
    prefill_attention_sm90,
)
from engine.ops.cuda.library import Library

_log = logging.getLogger(__name__)
_APART = 2e-2
"""Of results that two roundings of the same products explain: beyond, relative to their norm, a kernel is wrong."""
Prefill = Callable[[Library, torch.Tensor, torch.Tensor, int, PagedRows, Scores], torch.Tensor]


@dataclass(frozen=True, slots=True)
class PrefillChoice:
    """By head_dim: those that Hopper's kernel attends."""

    same_bits: frozenset[int] = frozenset()
    other_bits: frozenset[int] = frozenset()
    """Taken although rows of prompts then differ from rows that are decoded."""

    @property
    def name(self) -> str:
        """Of the arithmetic."""
        return "cuda+sm90" if self.other_bits else "cuda"

    def of(self, head_dim: int) -> Prefill:
        """The kernel."""
        return prefill_attention_sm90 if head_dim in self.same_bits | self.other_bits else prefill_attention


def choice_of(apart: Mapping[int, float], *, keeps_bits: bool) -> PrefillChoice:
    """`apart`: by head_dim, how far Hopper's kernel is from the other, relative to their norm; 0 where all bits are the
    same, and NaN where it is none. `keeps_bits`: whether prompts must have the bits of rows that are decoded."""
    same = frozenset(dim for dim, distance in apart.items() if distance == 0)
    other = frozenset(dim for dim, distance in apart.items() if 0 < distance <= _APART)
    for dim in sorted(apart.keys() - same - other):
        _log.error("prefill_attention_sm90: wrong for head_dim %d on this GPU, by %.1e; not taken", dim, apart[dim])
    return PrefillChoice(same, frozenset() if keeps_bits else other)


def prefill_choice(library: Library, *, is_hopper: bool, keeps_bits: bool) -> PrefillChoice:
    """Asked of the GPU rather than assumed, because kernels differ in the instructions that multiply."""
    if not is_hopper or not library.has("prefill_attention_sm90"):
        return PrefillChoice()
    choice = choice_of({dim: _apart(library, dim) for dim in sorted(SM90_HEAD_DIMS)}, keeps_bits=keeps_bits)
    _log.info("prompts: wgmma for head_dim %s", sorted(choice.same_bits | choice.other_bits) or "none")
    return choice


def _apart(library: Library, head_dim: int) -> float:
    """Over two spans of keys and a prompt that begins in the middle of one. Any difference of bits is above 0."""
    generator, device = torch.Generator().manual_seed(head_dim), library.device_type
    heads, block_tokens, start, tokens = 3, 32, 230, 50
    blocks = -(-(start + tokens) // block_tokens)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).bfloat16().to(device)

    def numbers(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    q, cache = drawn(tokens, heads, head_dim), drawn(blocks, 1, 2, 1, block_tokens, head_dim)
    table = torch.arange(blocks, dtype=torch.int32, device=device).unsqueeze(0)
    rows = PagedRows(table, numbers(0, tokens), numbers(start), start + tokens, tokens)
    scores = Scores(head_dim**-0.5)
    kernels: tuple[Prefill, ...] = (prefill_attention, prefill_attention_sm90)
    one, other = (kernel(library, q, cache, 0, rows, scores) for kernel in kernels)
    if torch.equal(one.view(torch.int16), other.view(torch.int16)):
        return 0.0
    one, other = one.double(), other.double()
    return max(float((one - other).norm() / one.norm()), 1e-12)
