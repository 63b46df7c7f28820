"""From a router's logits to the experts a token goes through, and their weights."""

from __future__ import annotations

import torch

from engine.ops import rowwise
from engine.spec import RoutingSpec


def route(
    routing: RoutingSpec, logits: torch.Tensor, score_bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `signatures.RouteOp`. A token's row depends on its own logits alone."""
    scores = _scores(routing, logits)
    biased = scores if score_bias is None else scores + score_bias
    experts = _best(_within_best_groups(routing, biased), routing.top_k)
    weights = scores.gather(1, experts)
    if routing.scores == "softmax_of_chosen":
        weights = weights.softmax(dim=-1)
    if routing.normalise:
        weights = weights / (_sum_in_order(weights) + 1e-20)  # sigmoids of very negative logits may all be zero
    return experts, weights * routing.scale


def _scores(routing: RoutingSpec, logits: torch.Tensor) -> torch.Tensor:
    match routing.scores:
        case "softmax":
            return logits.softmax(dim=-1)
        case "sigmoid":
            return rowwise.sigmoid(logits)
        case "softmax_of_chosen":
            return logits


def _within_best_groups(routing: RoutingSpec, scores: torch.Tensor) -> torch.Tensor:
    """Scores with those of experts outside the best `top_groups` groups at minus infinity (arXiv 2405.04434, 2.1.3)."""
    if routing.num_groups == routing.top_groups:
        return scores
    groups = scores.view(len(scores), routing.num_groups, -1)
    if routing.group_score == "max":
        group_scores = groups.amax(dim=-1)
    else:
        best_two = groups.sort(dim=-1, descending=True).values[:, :, :2]
        group_scores = best_two[:, :, 0] + best_two[:, :, 1]
    chosen = torch.zeros_like(group_scores, dtype=torch.bool)
    chosen.scatter_(1, _best(group_scores, routing.top_groups), True)
    return groups.masked_fill(~chosen.unsqueeze(-1), float("-inf")).view(scores.shape)


def _best(scores: torch.Tensor, count: int) -> torch.Tensor:
    return scores.sort(dim=-1, descending=True, stable=True).indices[:, :count]


def _sum_in_order(weights: torch.Tensor) -> torch.Tensor:
    """`[M, 1]`; torch's own sum may take another order for another number of rows."""
    total = weights[:, :1]
    for rank in range(1, weights.shape[1]):
        total = total + weights[:, rank : rank + 1]
    return total
