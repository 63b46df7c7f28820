"""The sampler as docs/sampling.md words it: plain torch, full sorts, one token at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from wire.sampling import SamplingParams

UNITS = 2**44


def adjusted(
    logits: torch.Tensor, params: SamplingParams, tokens: Sequence[int], num_prompt: int, stopping: Sequence[int] = ()
) -> torch.Tensor:
    """Steps 1 to 5; float32 `[vocab]`."""
    out, answer = logits.clone(), list(tokens[num_prompt:])
    if params.allowed_token_ids:
        mask = torch.full_like(out, -math.inf)
        mask[list(params.allowed_token_ids)] = 0.0
        out = out + mask
    for *begun, last in params.bad_words:
        if answer[len(answer) - len(begun) :] == begun and len(answer) >= len(begun):
            out[last] = -math.inf
    for token, value in params.logit_bias.items():
        out[token] = (out[token].double() + value).float()
    if len(answer) < params.min_tokens:
        out[list(stopping)] = -math.inf
    wide = out.double()
    for token in set(tokens):
        logit = float(wide[token])
        wide[token] = logit / params.repetition_penalty if logit > 0 else logit * params.repetition_penalty
    for token in set(answer):
        wide[token] -= params.frequency_penalty * answer.count(token) + params.presence_penalty
    return wide.float()


def units_left(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Steps 7 to 11: what of each token's mass is left, int64 `[vocab]`, the likeliest token's being 2**44."""
    z = (logits.double() - logits.max().double()) * min(1.0 / params.temperature, 1e300)
    units = torch.round(torch.exp(z) * UNITS).to(torch.int64)
    if params.min_p > 0:
        units[units < math.ceil(params.min_p * UNITS)] = 0
    if params.top_k:
        units[_order(-logits.double())[params.top_k :]] = 0
    if params.typical_p < 1:
        left = units > 0
        weights = torch.where(left, torch.exp(z), 0.0)
        expected = float((weights * z.clamp(min=-700)).sum() / weights.sum())
        distance = torch.where(left, (z - expected).abs(), math.inf)
        _cut(units, _order(distance), params.typical_p)
    if params.top_p < 1:
        _cut(units, _order(-logits.double()), params.top_p)
    return units


def draw(units: torch.Tensor, number: float) -> int:
    """Step 12; `number` in [0, 1) with 53 bits."""
    total = int(units.sum())
    point = int(number * 2**53) * total >> 53
    return int(torch.searchsorted(units.cumsum(0), torch.tensor(point), right=True))


def _order(keys: torch.Tensor) -> torch.Tensor:
    return torch.sort(keys, stable=True).indices


def _cut(units: torch.Tensor, order: torch.Tensor, share: float) -> None:
    """In place: nothing is left behind the place in `order` where `share` of the mass is reached."""
    target = max(math.ceil(share * float(int(units.sum()))), 1)
    before = units[order].cumsum(0) - units[order]
    units[order[before >= target]] = 0
