"""Mixtures whose experts are in FP8: the mixture of the values they stand for, packed as small as their files."""

from __future__ import annotations

import pytest
import torch
from closeness import distance, same_bits
from fp8_cases import stored_matrix, values_of

from engine.ops.cuda.expert_kernels import CudaExperts
from engine.ops.cuda.experts import ExpertStacks, pack_experts
from engine.ops.cuda.fp8_experts import Fp8Experts, Fp8ExpertStacks
from engine.ops.weight_matrix import ExpertMatrices, QuantizedMatrix

pytestmark = pytest.mark.usefixtures("poisoned")
COUNT, HIDDEN, WIDE, TOKENS = 3, 144, 176, 9
"""Neither a whole number of blocks."""


@pytest.fixture
def plain(platform):
    return CudaExperts(platform.library, is_hopper=False)


@pytest.fixture
def made(platform, plain):
    return Fp8Experts(platform.library, platform.device, plain)


def _experts(drawn, scaling: str | None, *, biases: bool = False, wide: int = WIDE) -> list[ExpertMatrices]:
    def matrix(n: int, k: int) -> QuantizedMatrix | torch.Tensor:
        weight = drawn(n, k, scale=k**-0.5)
        return weight if scaling is None else stored_matrix(weight.cpu(), scaling)

    found = []
    for _ in range(COUNT):
        added = (drawn(2 * wide), drawn(HIDDEN)) if biases else (None, None)
        found.append(ExpertMatrices(matrix(wide, HIDDEN), matrix(wide, HIDDEN), matrix(HIDDEN, wide), *added))
    return found


def _widened(platform, experts: list[ExpertMatrices]) -> list[ExpertMatrices]:
    """Rounded as a reader rounds them: the product of code and scale in float32 and then in bfloat16."""

    def wide(part: QuantizedMatrix | torch.Tensor) -> torch.Tensor:
        values = part if isinstance(part, torch.Tensor) else values_of(part).float().bfloat16()
        return values.to(platform.device)

    return [
        ExpertMatrices(wide(one.gate), wide(one.up), wide(one.down), one.gate_up_bias, one.down_bias) for one in experts
    ]


def _step(platform, drawn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, what they chose (nobody the first expert), weights, and what the shared expert made."""
    x, shared = drawn(TOKENS, HIDDEN), drawn(TOKENS, HIDDEN)
    chosen = torch.stack([1 + torch.arange(TOKENS) % 2, 2 - torch.arange(TOKENS) % 2], dim=1).to(platform.device)
    return x, chosen, drawn(TOKENS, 2, dtype=torch.float32).abs(), shared


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("scaling", ["rows", "blocks"])
def test_experts_in_fp8_are_those_of_their_values(platform, drawn, plain, made, scaling, biases):
    experts = _experts(drawn, scaling, biases=biases)
    packed = made.pack(iter(experts), COUNT)
    assert isinstance(packed, Fp8ExpertStacks)
    assert packed.gate_up.codes.shape == (COUNT, 2 * WIDE, HIDDEN)
    assert packed.down.codes.dtype == torch.float8_e4m3fn
    x, chosen, weights, shared = _step(platform, drawn)
    found = made(x, chosen, weights, packed, "silu", shared)
    widened = pack_experts(_widened(platform, experts), COUNT)
    assert distance(found, plain(x, chosen, weights, widened, "silu", shared)) < 0.01
    for token in (0, 7):
        own = slice(token, token + 1)
        alone = made(x[own], chosen[own], weights[own], packed, "silu", shared[own])
        assert same_bits(alone, found[own])


@pytest.mark.parametrize("odd", [0, 2])
@pytest.mark.parametrize("scaling", ["rows", "blocks"])
def test_experts_of_several_makes_are_widened_together(platform, drawn, plain, made, odd, scaling):
    experts = _experts(drawn, scaling, biases=True)
    experts[odd] = _experts(drawn, None, biases=True)[odd]
    packed = made.pack(iter(experts), COUNT)
    wanted = pack_experts(_widened(platform, experts), COUNT)
    assert isinstance(packed, ExpertStacks)
    for part in ("gate_up", "down", "gate_up_bias", "down_bias"):
        assert same_bits(getattr(packed, part), getattr(wanted, part)), part
    x, chosen, weights, _ = _step(platform, drawn)
    assert same_bits(made(x, chosen, weights, packed, "silu"), plain(x, chosen, weights, wanted, "silu"))


def test_experts_of_sizes_no_kernel_takes_are_widened(platform, drawn, made):
    experts = _experts(drawn, "rows", wide=40)
    packed = made.pack(iter(experts), COUNT)
    assert isinstance(packed, ExpertStacks)
    assert same_bits(packed.down, pack_experts(_widened(platform, experts), COUNT).down)


def test_experts_in_bfloat16_become_codes_only_where_that_is_asked_for(platform, drawn, plain, made):
    experts = _experts(drawn, None)
    assert isinstance(made.pack(iter(experts), COUNT), ExpertStacks)
    asked = Fp8Experts(platform.library, platform.device, plain, quantises=True)
    packed = asked.pack(iter(experts), COUNT)
    assert isinstance(packed, Fp8ExpertStacks)
    x, chosen, weights, _ = _step(platform, drawn)
    wanted = plain(x, chosen, weights, pack_experts(experts, COUNT), "silu")
    assert distance(asked(x, chosen, weights, packed, "silu"), wanted) < 0.06
    assert asked.name == "grouped_fp8_weights_quantised_here+grouped_gemm" != made.name
