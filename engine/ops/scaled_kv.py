"""Caches of 8 bits in plain torch: numbers of one scale a token and head, int8 or E4M3 (as uint8).

`[num_blocks, num_layers, 2, num_kv_heads, block_tokens * (D + 4)]`: the numbers of a plane's tokens, then their
float32 scales. With m the largest magnitude of a head and L the type's largest number (127; 448), a number is
x * (L / m) rounded to the nearest, ties to even, and counts as itself times the scale m / L. A head whose m is under
2^-100 counts as zeros; one with infinity or NaN has a NaN for a scale. The bits are those of `csrc/cpu/scaled_head.h`.
"""

from __future__ import annotations

import torch

_NUMBERS = {torch.int8: torch.int8, torch.uint8: torch.float8_e4m3fn}
_LARGEST = {torch.int8: 127.0, torch.uint8: 448.0}
_SCALE_BYTES = 4


def is_scaled(kv_cache: torch.Tensor) -> bool:
    return kv_cache.dtype in _NUMBERS


def block_tokens_of(kv_cache: torch.Tensor, head_dim: int) -> int:
    return int(kv_cache.shape[-1]) // (head_dim + _SCALE_BYTES)


def store(kv_cache: torch.Tensor, layer: int, plane: int, slots: torch.Tensor, heads: torch.Tensor) -> None:
    """`heads` `[M, num_kv_heads, D]` float32, row i to slot `slots[i]` (`[M]` int64) of plane 0 (K) or 1 (V)."""
    head_dim = heads.shape[-1]
    numbers, scales = _rounded(heads, kv_cache.dtype)
    tokens = block_tokens_of(kv_cache, head_dim)
    blocks, offsets = slots // tokens, slots % tokens
    own = kv_cache[:, layer, plane]
    places = own[..., : tokens * head_dim].view(*own.shape[:-1], tokens, head_dim)
    places[blocks, :, offsets] = numbers
    scale_places = own[..., tokens * head_dim :].view(*own.shape[:-1], tokens, _SCALE_BYTES)
    scale_places[blocks, :, offsets] = scales.view(kv_cache.dtype)


def load(kv_cache: torch.Tensor, layer: int, blocks: torch.Tensor, head_dim: int) -> torch.Tensor:
    """float32 `[len(blocks), 2, num_kv_heads, block_tokens, D]`."""
    tokens = block_tokens_of(kv_cache, head_dim)
    own = kv_cache[blocks, layer]
    numbers = own[..., : tokens * head_dim].contiguous().view(_NUMBERS[kv_cache.dtype]).float()
    scales = own[..., tokens * head_dim :].contiguous().view(torch.float32)
    return numbers.view(*own.shape[:-1], tokens, head_dim) * scales.unsqueeze(-1)


def _rounded(heads: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers as `dtype`, and float32 scales `[..., 1]`."""
    bound = _LARGEST[dtype]
    largest = heads.abs().amax(-1, keepdim=True)
    is_zero = largest < 2.0**-100
    counts = largest.isfinite() & ~is_zero
    scales = torch.where(counts, largest / bound, torch.where(is_zero, 0.0, torch.nan))
    wide = torch.where(counts, heads * (bound / largest), 0.0)
    numbers = wide.round() if dtype == torch.int8 else wide
    return numbers.to(_NUMBERS[dtype]).view(dtype), scales
