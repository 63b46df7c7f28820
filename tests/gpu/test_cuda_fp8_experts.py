"""Mixtures whose experts are in FP8: the mixture of the values they stand for, packed as small as their files."""

from __future__ import annotations

import pytest
import torch
from closeness import distance, same_bits
from fp8_cases import exact_groups, stored_matrix, values_of

from engine.ops.cuda.expert_kernels import CudaExperts
from engine.ops.cuda.experts import ExpertStacks, pack_experts
from engine.ops.cuda.fp8_expert_steps import Fp8ExpertStacks
from engine.ops.cuda.fp8_experts import Fp8Experts
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


def _experts(
    drawn, scaling: str | None, *, biases: bool = False, wide: int = WIDE, hidden: int = HIDDEN
) -> list[ExpertMatrices]:
    def matrix(n: int, k: int) -> QuantizedMatrix | torch.Tensor:
        weight = drawn(n, k, scale=k**-0.5)
        return weight if scaling is None else stored_matrix(weight.cpu(), scaling)

    found = []
    for _ in range(COUNT):
        added = (drawn(2 * wide), drawn(hidden)) if biases else (None, None)
        found.append(ExpertMatrices(matrix(wide, hidden), matrix(wide, hidden), matrix(hidden, wide), *added))
    return found


def _widened(platform, experts: list[ExpertMatrices]) -> list[ExpertMatrices]:
    """Rounded as a reader rounds them: the product of code and scale in float32 and then in bfloat16."""

    def wide(part: QuantizedMatrix | torch.Tensor) -> torch.Tensor:
        values = part if isinstance(part, torch.Tensor) else values_of(part).float().bfloat16()
        return values.to(platform.device)

    return [
        ExpertMatrices(wide(one.gate), wide(one.up), wide(one.down), one.gate_up_bias, one.down_bias) for one in experts
    ]


def _step(platform, drawn, hidden: int = HIDDEN) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, what they chose (nobody the first expert), weights, and what the shared expert made."""
    x, shared = drawn(TOKENS, hidden), drawn(TOKENS, hidden)
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


class _Tiles:
    """Exact products of codes, by whatever tile; `differ`: a tile of its own arithmetic."""

    def __init__(self, *, differ: bool = False) -> None:
        self.taken: list[int] = []
        self._differ = differ

    def __call__(self, library, x, weight, permutation, *, tile):
        self.taken.append(tile)
        y = exact_groups(library, x, weight, permutation, tile=tile)
        return y * 1.01 if self._differ and tile == 0 else y


@pytest.mark.parametrize(("scaling", "hidden", "wide"), [("rows", HIDDEN, WIDE), ("blocks", 128, 256)])
def test_experts_whose_rows_are_codes_are_those_of_what_codes_stand_for(platform, drawn, plain, scaling, hidden, wide):
    coded = Fp8Experts(platform.library, platform.device, plain, multiply=_Tiles())
    experts = _experts(drawn, scaling, hidden=hidden, wide=wide)
    packed = coded.pack(iter(experts), COUNT)
    assert (packed.rows, packed.gate_up.scaling) == ("codes", scaling)
    x, chosen, weights, shared = _step(platform, drawn, hidden)
    found = coded(x, chosen, weights, packed, "silu", shared)
    widened = pack_experts(_widened(platform, experts), COUNT)
    assert 1e-3 < distance(found, plain(x, chosen, weights, widened, "silu", shared)) < 0.06
    for token in (0, 7):
        own = slice(token, token + 1)
        alone = coded(x[own], chosen[own], weights[own], packed, "silu", shared[own])
        assert same_bits(alone, found[own])


def test_a_choice_of_no_expert_here_adds_nothing_where_rows_are_codes(platform, drawn, plain):
    coded = Fp8Experts(platform.library, platform.device, plain, multiply=_Tiles())
    packed = coded.pack(iter(_experts(drawn, "rows")), COUNT)
    x, chosen, weights, shared = _step(platform, drawn)
    elsewhere = torch.where(chosen == 1, COUNT + 4, chosen)
    nothing = torch.where(chosen == 1, 0.0, weights)
    found = coded(x, elsewhere, weights, packed, "silu", shared)
    assert distance(found, coded(x, chosen, nothing, packed, "silu", shared)) < 4e-3


@pytest.mark.parametrize("differ", [False, True])
def test_how_many_rows_there_are_chooses_a_tile_only_where_tiles_agree(platform, drawn, plain, differ):
    tiles = _Tiles(differ=differ)
    coded = Fp8Experts(platform.library, platform.device, plain, multiply=tiles)
    packed = coded.pack(iter(_experts(drawn, "rows", hidden=32, wide=16)), COUNT)
    taken = []
    for tokens in (1, 40 * COUNT):
        tiles.taken.clear()
        chosen = (torch.arange(tokens, device=platform.device) % COUNT).unsqueeze(1)
        weights = torch.ones(tokens, 1, device=platform.device)
        coded(drawn(tokens, 32), chosen, weights, packed, "silu")
        taken.append(tuple(tiles.taken))
    assert taken == ([(1, 1)] * 2 if differ else [(0, 0), (1, 1)])


@pytest.mark.parametrize(
    ("scaling", "hidden", "wide", "biases"),
    [("blocks", 128, WIDE, False), ("blocks", HIDDEN, 128, False), ("rows", HIDDEN, WIDE, True)],
)
def test_layers_that_products_of_codes_do_not_take_meet_bfloat16(
    platform, drawn, plain, made, scaling, hidden, wide, biases
):
    coded = Fp8Experts(platform.library, platform.device, plain, multiply=_Tiles())
    experts = _experts(drawn, scaling, hidden=hidden, wide=wide, biases=biases)
    packed = coded.pack(iter(experts), COUNT)
    assert packed.rows == "bfloat16"
    x, chosen, weights, _ = _step(platform, drawn, hidden)
    wanted = made(x, chosen, weights, made.pack(iter(experts), COUNT), "silu")
    assert same_bits(coded(x, chosen, weights, packed, "silu"), wanted)


def test_the_name_says_what_experts_meet(platform, plain, made):
    coded = Fp8Experts(platform.library, platform.device, plain, multiply=_Tiles())
    assert (coded.name, made.name) == ("grouped_fp8+grouped_gemm", "grouped_fp8_weights+grouped_gemm")
