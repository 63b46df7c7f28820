"""Routing: the reference's experts, its weights but for the last bits, and a row knows no other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from closeness import same_bits

from engine.ops.cuda.route import route
from engine.ops.routing import route as reference
from engine.spec import RoutingSpec
from wire.errors import SpliceError

pytestmark = pytest.mark.usefixtures("poisoned")
SOFTMAX = RoutingSpec(num_experts=12, top_k=4, scores="softmax", normalise=False)
KINDS = {
    "softmax": SOFTMAX,
    "one-expert": replace(SOFTMAX, num_experts=1, top_k=1),
    "qwen3": RoutingSpec(128, 8, "softmax", normalise=True),
    "gpt-oss": RoutingSpec(32, 4, "softmax_of_chosen", normalise=False),
    "mixtral": RoutingSpec(8, 2, "softmax_of_chosen", normalise=False, scale=0.5),
    "deepseek-v2": RoutingSpec(160, 6, "softmax", normalise=False, scale=16.0, num_groups=8, top_groups=3),
    "deepseek-v3": RoutingSpec(
        256, 8, "sigmoid", normalise=True, scale=2.5, num_groups=8, top_groups=4, group_score="top2_sum",
        score_bias=True,
    ),
    "all": RoutingSpec(37, 32, "sigmoid", normalise=True, score_bias=True),
    "many": RoutingSpec(512, 10, "softmax", normalise=True),
}  # fmt: skip
ROWS = 9


def _inputs(platform, drawn, routing: RoutingSpec, rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor | None]:
    logits = drawn(rows, routing.num_experts, dtype=torch.float32, scale=2.0)
    bias = drawn(routing.num_experts, dtype=torch.float32, scale=0.1) if routing.score_bias else None
    return logits, bias


@pytest.mark.parametrize("kind", KINDS)
def test_experts_and_weights_are_the_references(platform, drawn, kind):
    routing = KINDS[kind]
    logits, bias = _inputs(platform, drawn, routing)
    experts, weights = route(platform.library, routing, logits, bias)
    wanted, exact = reference(routing, logits.cpu(), None if bias is None else bias.cpu())
    assert torch.equal(experts.cpu(), wanted)
    torch.testing.assert_close(weights.cpu(), exact, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_routed_alike_in_any_company_and_order_of_threads(platform, drawn, reseeded, kind):
    routing = KINDS[kind]
    logits, bias = _inputs(platform, drawn, routing)
    experts, weights = route(platform.library, routing, logits, bias)
    for row in (0, 3, ROWS - 1):
        reseeded(row + 1)
        own_experts, own_weights = route(platform.library, routing, logits[row : row + 1], bias)
        assert torch.equal(own_experts, experts[row : row + 1])
        assert same_bits(own_weights, weights[row : row + 1])


def test_of_two_alike_the_lower_id_is_chosen(platform):
    logits = torch.zeros(2, 12, device=platform.device)
    logits[1, 1::2] = -0.0
    for routing in (SOFTMAX, replace(SOFTMAX, num_groups=4, top_groups=2), replace(SOFTMAX, scores="sigmoid")):
        experts, weights = route(platform.library, routing, logits, None)
        assert experts.tolist() == [[0, 1, 2, 3]] * 2
        assert same_bits(weights[0], weights[1])


def test_logits_may_stand_in_wider_rows(platform, drawn):
    wide = drawn(5, 40, dtype=torch.float32)
    experts, weights = route(platform.library, SOFTMAX, wide[:, 8:20], None)
    plain = route(platform.library, SOFTMAX, wide[:, 8:20].contiguous(), None)
    assert torch.equal(experts, plain[0])
    assert same_bits(weights, plain[1])


def test_scores_that_are_all_zero_divide_by_nothing(platform):
    routing = replace(SOFTMAX, scores="sigmoid", normalise=True)
    _, weights = route(platform.library, routing, torch.full((1, 12), -200.0, device=platform.device), None)
    assert weights.tolist() == [[0.0] * 4]


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("kind", ["softmax", "gpt-oss", "deepseek-v2", "deepseek-v3", "all"])
def test_a_logit_that_is_no_number_is_seen_in_the_weights(platform, drawn, kind, sign):
    routing = KINDS[kind]
    logits, bias = _inputs(platform, drawn, routing, 2)
    logits[0, 5] = torch.copysign(torch.tensor(torch.nan), torch.tensor(sign))
    experts, weights = route(platform.library, routing, logits, bias)
    wanted, _ = reference(routing, logits.cpu(), None if bias is None else bias.cpu())
    assert torch.equal(experts.cpu(), wanted)
    assert weights[0].isnan().any()
    assert weights[1].isfinite().all()


def test_what_the_kernel_does_not_take_is_named(platform):
    def refused(words: str, routing: RoutingSpec, logits: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        with pytest.raises(SpliceError, match=words):
            route(platform.library, routing, logits.to(platform.device), bias)

    refused("513 experts", replace(SOFTMAX, num_experts=513), torch.zeros(1, 513))
    refused("top_k 33", replace(SOFTMAX, num_experts=40, top_k=33), torch.zeros(1, 40))
    refused("3 of 64 groups", replace(SOFTMAX, num_experts=64, num_groups=64, top_groups=3), torch.zeros(1, 64))
    refused("logits is of shape", SOFTMAX, torch.zeros(1, 13))
    refused("logits is of torch.bfloat16", SOFTMAX, torch.zeros(1, 12).bfloat16())
    refused("contiguous within each row", SOFTMAX, torch.zeros(12, 3).t())
    refused("score_bias is of shape", SOFTMAX, torch.zeros(1, 12), torch.zeros(11, device=platform.device))
