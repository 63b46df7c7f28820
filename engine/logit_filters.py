"""What sampling parameters do to one row of logits.

Every function takes one row `[vocab]` float64 and works element by element or by a full ordering with ties to the
lowest token id: a row's result cannot depend on the batch it came in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float64]
TokenIds = NDArray[np.int64]


def add_bias(logits: Logits, bias: Mapping[int, float]) -> None:
    """In place; `bias` maps token id → what is added."""
    for token, value in bias.items():
        logits[token] += value


def penalise(
    logits: Logits,
    tokens: Sequence[int],
    num_prompt_tokens: int,
    *,
    repetition: float,
    frequency: float,
    presence: float,
) -> None:
    """In place. Repetition as in CTRL (arXiv 1909.05858), over prompt and output: positive logits are divided by it,
    negative ones multiplied. Then, over the output, `frequency` × count and `presence` are subtracted."""
    if repetition != 1.0:
        seen = np.unique(np.asarray(tokens, dtype=np.int64))
        values = logits[seen]
        logits[seen] = np.where(values > 0, values / repetition, values * repetition)
    if frequency != 0.0 or presence != 0.0:
        ids, counts = np.unique(np.asarray(tokens[num_prompt_tokens:], dtype=np.int64), return_counts=True)
        logits[ids] -= frequency * counts + presence


def forbid(logits: Logits, tokens: Iterable[int]) -> None:
    """In place: these tokens cannot be drawn."""
    for token in tokens:
        logits[token] = -np.inf


def weigh(logits: Logits, temperature: float) -> Logits:
    """Unnormalised probabilities of softmax(logits / temperature), the largest being 1."""
    with np.errstate(over="ignore", under="ignore"):
        weights: Logits = np.exp((logits - logits.max()) / temperature)
    return weights


def keep_min_p(ids: TokenIds, weights: Logits, min_p: float) -> TokenIds:
    """Those of `ids` at least `min_p` times as likely as the likeliest (arXiv 2407.01082)."""
    candidates = weights[ids]
    kept: TokenIds = ids[candidates >= min_p * candidates.max()]
    return kept


def keep_top_k(ids: TokenIds, weights: Logits, top_k: int) -> TokenIds:
    """The `top_k` likeliest of `ids`, likeliest first."""
    return _likeliest_first(ids, weights, top_k)[:top_k]


def keep_top_p(ids: TokenIds, weights: Logits, top_p: float) -> TokenIds:
    """The fewest likeliest of `ids` whose share of the mass of `ids` reaches `top_p`, likeliest first; at least one.

    (Nucleus sampling, arXiv 1904.09751.) Sorts a growing head of the distribution instead of all of it.
    """
    target = top_p * float(weights[ids].sum())
    size = min(256, len(ids))
    while True:
        ordered = _likeliest_first(ids, weights, size)
        mass = np.cumsum(weights[ordered])
        reached = int(np.searchsorted(mass, target, side="left"))
        if reached < len(ordered):
            return ordered[: reached + 1]
        if len(ordered) == len(ids):
            return ordered
        size = min(8 * size, len(ids))


def _likeliest_first(ids: TokenIds, weights: Logits, at_least: int) -> TokenIds:
    """`ids` by falling weight, ties by rising id, cut somewhere after the first `at_least`, never inside a tie."""
    values = weights[ids]
    if at_least < len(ids):
        threshold = np.partition(values, len(values) - at_least)[len(values) - at_least]
        ids, values = ids[values >= threshold], values[values >= threshold]
    return ids[np.lexsort((ids, -values))]
