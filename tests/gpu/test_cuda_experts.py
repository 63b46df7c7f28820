"""A mixture's experts whole: near the exact ones, and a token's row knows no other token."""

from __future__ import annotations

import os

import kernel_platform
import pytest
import torch
from closeness import distance, same_bits

from engine.ops import reference
from engine.ops.cuda.experts import ExpertStacks, experts, pack_experts, tile_rows_for
from engine.ops.cuda.route import route
from engine.ops.weight_matrix import ExpertMatrices
from engine.spec import RoutingSpec
from wire.errors import SpliceError

pytestmark = pytest.mark.usefixtures("poisoned")
HIDDEN, WIDE, EXPERTS = 72, 40, 5
ROUNDING = 8e-3
"""Relative error of the roundings to bfloat16 on the way: gate and up, their product, the expert's row, the sum."""


def _matrices(drawn, biased: bool) -> list[ExpertMatrices]:
    def one() -> ExpertMatrices:
        gate, up = (drawn(WIDE, HIDDEN, scale=HIDDEN**-0.5) for _ in range(2))
        biases = (drawn(2 * WIDE), drawn(HIDDEN)) if biased else ()
        return ExpertMatrices(gate, up, drawn(HIDDEN, WIDE, scale=WIDE**-0.5), *biases)

    return [one() for _ in range(EXPERTS)]


def _choices(tokens: int, top_k: int, platform, drawn) -> tuple[torch.Tensor, torch.Tensor]:
    """Of all experts but the last."""
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.stack([torch.randperm(EXPERTS - 1, generator=generator)[:top_k] for _ in range(tokens)])
    return ids.to(platform.device), drawn(tokens, top_k, dtype=torch.float32).softmax(-1)


def _exact(x, ids, weights, matrices, activation) -> torch.Tensor:
    """In float64, from the reference's own gate."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token, choices in enumerate(ids.tolist()):
        for expert, share in zip(choices, weights[token].double().tolist(), strict=True):
            own = matrices[expert]
            wide = torch.cat((own.gate, own.up)).double().cpu() @ x[token].double().cpu()
            wide = wide if own.gate_up_bias is None else wide + own.gate_up_bias.double().cpu()
            made = own.down.double().cpu() @ reference.gated_mul(wide.float().unsqueeze(0), activation)[0].double()
            out[token] += share * (made if own.down_bias is None else made + own.down_bias.double().cpu())
    return out


@pytest.mark.parametrize(("tokens", "top_k"), [(1, 1), (1, 4), (2, 2), (33, 3)])
@pytest.mark.parametrize(("biased", "activation"), [(False, "silu"), (True, "swiglu_oai")])
def test_experts_are_near_the_exact_ones(platform, drawn, tokens, top_k, biased, activation):
    matrices, x = _matrices(drawn, biased), drawn(tokens, HIDDEN)
    ids, weights = _choices(tokens, top_k, platform, drawn)
    found = experts(platform.library, x, ids, weights, pack_experts(matrices, EXPERTS), activation)
    assert distance(found, _exact(x, ids, weights, matrices, activation)) < ROUNDING
    packed = reference.EXPERTS.pack([_on_cpu(one) for one in matrices], EXPERTS)
    other = reference.EXPERTS(x.cpu(), ids.cpu(), weights.cpu(), packed, activation)
    assert distance(found, other) < ROUNDING


def _on_cpu(one: ExpertMatrices) -> ExpertMatrices:
    biases = (None if bias is None else bias.cpu() for bias in (one.gate_up_bias, one.down_bias))
    return ExpertMatrices(one.gate.cpu(), one.up.cpu(), one.down.cpu(), *biases)


def test_a_tokens_row_is_the_same_in_any_company(platform, drawn, reseeded):
    """Alone tiles have 16 rows, together 64: the choice of a tile shows nowhere."""
    tokens = 70
    packed, x = pack_experts(_matrices(drawn, biased=True), EXPERTS), drawn(tokens, HIDDEN)
    ids, weights = _choices(tokens, 2, platform, drawn)
    shared = drawn(tokens, 2 * HIDDEN)[:, :HIDDEN]
    together = experts(platform.library, x, ids, weights, packed, "silu", shared)
    assert tile_rows_for(ids.numel(), EXPERTS) == 64
    assert distance(together, experts(platform.library, x, ids, weights, packed, "silu").double() + shared) < ROUNDING
    for row in (0, 33, tokens - 1):
        reseeded(row + 1)
        own = slice(row, row + 1)
        alone = experts(platform.library, x[own], ids[own], weights[own], packed, "silu", shared[own])
        assert same_bits(alone, together[own])


@pytest.mark.gpu
def test_gpu_a_captured_graph_replays_for_other_choices():
    missing = kernel_platform.why_no_gpu()
    if missing:
        pytest.skip(missing)
    if "PYTORCH_NO_CUDA_MEMORY_CACHING" in os.environ:
        pytest.skip("torch captures nothing where each tensor is an allocation of its own")
    platform = kernel_platform.gpu()

    def drawn(*shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(shape, device=platform.device) * scale).to(dtype)

    packed, x = pack_experts(_matrices(drawn, biased=True), EXPERTS), drawn(48, HIDDEN)
    routing = RoutingSpec(EXPERTS, 2, "softmax", normalise=True)
    logits = drawn(48, EXPERTS, dtype=torch.float32)

    def mixture() -> torch.Tensor:
        ids, weights = route(platform.library, routing, logits, None)
        return experts(platform.library, x, ids, weights, packed, "silu")

    mixture()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = mixture()
    for skew in (0.0, 30.0):
        logits.copy_(drawn(48, EXPERTS, dtype=torch.float32))
        logits[:, 0] += skew
        graph.replay()
        assert same_bits(out, mixture())


def test_halves_of_the_experts_add_up_to_all(platform, drawn):
    """As when experts live on two devices, each of which knows its own by ids from 0 on."""
    matrices, x = _matrices(drawn, biased=False), drawn(9, HIDDEN)
    ids, weights = _choices(9, 3, platform, drawn)
    whole = experts(platform.library, x, ids, weights, pack_experts(matrices, EXPERTS), "silu")
    parts = [
        experts(platform.library, x, ids - first, weights, pack_experts(matrices[first:last], last - first), "silu")
        for first, last in ((0, 2), (2, EXPERTS))
    ]
    assert distance(parts[0].double() + parts[1].double(), whole) < ROUNDING


def test_no_tokens_are_no_rows(platform, drawn):
    packed = pack_experts(_matrices(drawn, biased=False), EXPERTS)
    ids, weights = (torch.empty(0, 2, dtype=dtype, device=platform.device) for dtype in (torch.int64, torch.float32))
    assert experts(platform.library, drawn(0, HIDDEN), ids, weights, packed, "silu").shape == (0, HIDDEN)


def test_tiles_grow_with_the_rows_of_an_expert():
    assert [tile_rows_for(rows * 8, 8) for rows in (1, 16, 17, 64, 65, 4000)] == [16, 16, 64, 64, 128, 128]


def test_what_does_not_fit_together_is_named(platform, drawn):
    packed = pack_experts(_matrices(drawn, biased=False), EXPERTS)
    ids, weights = _choices(4, 2, platform, drawn)
    x = drawn(4, HIDDEN)
    for words, call in (
        ("x is of shape", lambda: experts(platform.library, drawn(3, HIDDEN), ids, weights, packed, "silu")),
        ("x is of torch.float32", lambda: experts(platform.library, x.float(), ids, weights, packed, "silu")),
        ("weights is of shape", lambda: experts(platform.library, x, ids, weights[:, :1].contiguous(), packed, "silu")),
        ("weight is of shape", lambda: experts(platform.library, x, ids, weights, _cut(packed), "silu")),
        ("experts is empty", lambda: pack_experts([], 0)),
    ):
        with pytest.raises(SpliceError, match=words):
            call()


def _cut(packed: ExpertStacks) -> ExpertStacks:
    return ExpertStacks(packed.gate_up[:3], packed.down)
