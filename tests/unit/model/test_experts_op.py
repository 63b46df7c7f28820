"""The operation `experts`: a weighted sum of what a token's experts make of it, whoever else chose them."""

from __future__ import annotations

import pytest
import torch

from engine.ops.names import OpsChoice
from engine.ops.registry import OpTable, select_ops
from engine.ops.weight_matrix import ExpertMatrices

HIDDEN, WIDE, EXPERTS = 24, 40, 5


def _drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / shape[-1] ** 0.5


@pytest.fixture(params=["auto", "reference"])
def ops(request: pytest.FixtureRequest) -> OpTable:
    choice: OpsChoice = request.param
    return select_ops(torch.float32, choice, frozenset({"experts"}))


def _experts(biased: bool) -> list[ExpertMatrices]:
    def one(seed: int) -> ExpertMatrices:
        gate, up = _drawn(WIDE, HIDDEN, seed=seed), _drawn(WIDE, HIDDEN, seed=seed + 50)
        down = _drawn(HIDDEN, WIDE, seed=seed)
        if not biased:
            return ExpertMatrices(gate, up, down)
        return ExpertMatrices(gate, up, down, _drawn(2 * WIDE, seed=seed), _drawn(HIDDEN, seed=seed))

    return [one(7 * index + 1) for index in range(EXPERTS)]


def _exact(x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, experts: list[ExpertMatrices]) -> torch.Tensor:
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token, (choices, shares) in enumerate(zip(ids.tolist(), weights.double(), strict=True)):
        for expert, share in zip(choices, shares, strict=True):
            own, row = experts[expert], x[token].double()
            assert isinstance(own.gate, torch.Tensor)
            assert isinstance(own.up, torch.Tensor)
            assert isinstance(own.down, torch.Tensor)
            wide = torch.cat((own.gate, own.up)).double() @ row
            if own.gate_up_bias is not None:
                wide += own.gate_up_bias
            made = own.down.double() @ (torch.nn.functional.silu(wide[:WIDE]) * wide[WIDE:])
            out[token] += share * (made if own.down_bias is None else made + own.down_bias)
    return out


@pytest.mark.parametrize("biased", [False, True])
def test_tokens_go_through_the_experts_they_chose(ops: OpTable, biased: bool) -> None:
    experts, x = _experts(biased), _drawn(37, HIDDEN, seed=90)
    ids = torch.stack([torch.randperm(EXPERTS - 1, generator=torch.Generator().manual_seed(i))[:3] for i in range(37)])
    weights, shared = _drawn(37, 3, seed=91).abs(), _drawn(37, HIDDEN, seed=92)
    packed = ops.pack_experts(iter(experts), EXPERTS)
    found = ops.experts(x, ids, weights, packed, "silu")
    expected = _exact(x, ids, weights, experts)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    beside = ops.experts(x, ids, weights, packed, "silu", shared)
    torch.testing.assert_close(beside.double(), expected + shared, rtol=1e-5, atol=1e-5)
    for row in (0, 17, 36):
        own = slice(row, row + 1)
        assert torch.equal(ops.experts(x[own], ids[own], weights[own], packed, "silu", shared[own]), beside[own])
