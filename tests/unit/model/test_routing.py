"""Which experts a token goes through, and with what weights."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

from engine.ops.native import NativeOps
from engine.ops.native_kernels import KERNELS
from engine.ops.routing import route as reference
from engine.ops.signatures import RouteOp
from engine.spec import RoutingSpec

SOFTMAX = RoutingSpec(num_experts=12, top_k=4, scores="softmax", normalise=False)
KINDS = {
    "softmax": SOFTMAX,
    "normalised": replace(SOFTMAX, normalise=True, scale=0.5),
    "of-chosen": replace(SOFTMAX, scores="softmax_of_chosen"),
    "groups": replace(SOFTMAX, num_groups=4, top_groups=2, scale=16.0),
    "sigmoid": replace(SOFTMAX, scores="sigmoid", normalise=True, scale=2.5, score_bias=True),
    "sigmoid-groups": replace(
        SOFTMAX, scores="sigmoid", normalise=True, num_groups=3, top_groups=2, group_score="top2_sum", score_bias=True
    ),
}


@pytest.fixture(params=["torch", "native"])
def route(request: pytest.FixtureRequest) -> RouteOp:
    return reference if request.param == "torch" else NativeOps(KERNELS).route


def _route_one(routing: RoutingSpec, logits: list[float], bias: list[float]) -> tuple[list[int], list[float]]:
    """One token's experts and weights, by the book."""
    highest = max(logits)
    total = sum(math.exp(logit - highest) for logit in logits)
    scores = {
        "softmax": [math.exp(logit - highest) / total for logit in logits],
        "sigmoid": [1 / (1 + math.exp(-logit)) for logit in logits],
        "softmax_of_chosen": logits,
    }[routing.scores]
    merit = [score + extra for score, extra in zip(scores, bias, strict=True)]
    size = routing.num_experts // routing.num_groups
    counted = 1 if routing.group_score == "max" else 2
    strength = [sum(sorted(merit[g * size : (g + 1) * size])[-counted:]) for g in range(routing.num_groups)]
    groups = sorted(range(routing.num_groups), key=lambda g: -strength[g])[: routing.top_groups]
    allowed = [expert for expert in range(routing.num_experts) if expert // size in groups]
    chosen = sorted(allowed, key=lambda expert: -merit[expert])[: routing.top_k]
    weights = [scores[expert] for expert in chosen]
    if routing.scores == "softmax_of_chosen":
        weights = [math.exp(weight - weights[0]) for weight in weights]
        weights = [weight / sum(weights) for weight in weights]
    if routing.normalise:
        weights = [weight / sum(weights) for weight in weights]
    return chosen, [weight * routing.scale for weight in weights]


@pytest.mark.parametrize("kind", KINDS)
def test_choices_and_weights_are_those_of_the_definition(route: RouteOp, kind: str) -> None:
    rng, routing = random.Random(5), KINDS[kind]
    logits = [[rng.gauss(0, 2) for _ in range(12)] for _ in range(50)]
    bias = [rng.gauss(0, 0.3) if routing.score_bias else 0.0 for _ in range(12)]
    experts, weights = route(routing, torch.tensor(logits), torch.tensor(bias) if routing.score_bias else None)
    for row, own in enumerate(logits):
        chosen, expected = _route_one(routing, own, bias)
        assert experts[row].tolist() == chosen
        assert weights[row].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_is_routed_the_same_in_any_company(route: RouteOp, kind: str) -> None:
    routing = KINDS[kind]
    logits = torch.randn(70, 12, generator=torch.Generator().manual_seed(1)) * 3
    bias = torch.linspace(-0.2, 0.2, 12) if routing.score_bias else None
    experts, weights = route(routing, logits, bias)
    for first, last in [(0, 1), (3, 8), (69, 70), (1, 70)]:
        some_experts, some_weights = route(routing, logits[first:last].clone(), bias)
        assert torch.equal(some_experts, experts[first:last])
        assert torch.equal(some_weights, weights[first:last])


def test_of_two_alike_the_lower_index_is_chosen(route: RouteOp) -> None:
    experts, weights = route(replace(SOFTMAX, num_groups=4, top_groups=2), torch.zeros(2, 12), None)
    assert experts.tolist() == [[0, 1, 2, 3]] * 2
    assert weights.tolist() == [[pytest.approx(1 / 12)] * 4] * 2


def test_scores_that_are_all_zero_divide_by_nothing(route: RouteOp) -> None:
    _, weights = route(KINDS["sigmoid"], torch.full((1, 12), -200.0), torch.zeros(12))
    assert weights.tolist() == [[pytest.approx(0.0, abs=1e-15)] * 4]


def test_a_logit_that_is_no_number_is_seen_in_the_weights(route: RouteOp) -> None:
    for kind, routing in KINDS.items():
        logits = torch.linspace(-1, 1, 24).view(2, 12)
        logits[0, 5] = torch.nan
        experts, weights = route(routing, logits, torch.zeros(12) if routing.score_bias else None)
        assert weights[0].isnan().any(), kind
        assert weights[1].isfinite().all()
        assert all(len(set(row)) == 4 and 0 <= min(row) <= max(row) < 12 for row in experts.tolist())


def test_a_routing_that_cannot_choose_is_named() -> None:
    assert not SOFTMAX.problems()
    wrong = {
        "top_k is 0": replace(SOFTMAX, top_k=0),
        "more than the experts": replace(SOFTMAX, num_groups=4, top_groups=1),
        "top_groups 5": replace(SOFTMAX, num_groups=4, top_groups=5),
        "not a multiple": replace(SOFTMAX, num_groups=5, top_groups=5),
        "no two best": replace(SOFTMAX, num_groups=12, top_groups=6, group_score="top2_sum"),
    }
    for words, routing in wrong.items():
        assert any(words in problem for problem in routing.problems())
