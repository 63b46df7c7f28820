"""A step through a mixture's experts in FP8, with rows in bfloat16 or in codes."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from engine.ops.cuda.fp8 import gated_mul_fp8
from engine.ops.cuda.fp8_products import Fp8Rows
from engine.ops.cuda.fp8_reference import quantise_weight
from engine.ops.cuda.grouped_fp8 import ProductOfGroups, gather_codes, grouped_fp8
from engine.ops.cuda.grouped_fp8_weights import FP8_TILE_ROWS, Fp8Stack, StackScaling, grouped_fp8_weights
from engine.ops.cuda.library import Library
from engine.ops.cuda.permutation import permute, unpermute
from engine.spec import Activation

FEW, MANY = 0, 1
"""Tiles of products of codes with codes, by their numbers: for few rows an expert, and many."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fp8ExpertStacks:
    """The experts of a layer."""

    gate_up: Fp8Stack
    """`[num_experts, 2 * intermediate, hidden]`, an expert's gate first, scales of blocks as `grouped_fp8_weights` has
    them."""
    down: Fp8Stack
    """`[num_experts, hidden, intermediate]`."""
    gate_up_bias: torch.Tensor | None = None
    """`[num_experts, 2 * intermediate]`."""
    down_bias: torch.Tensor | None = None
    """`[num_experts, hidden]`."""
    rows: Fp8Rows = "bfloat16"
    """What the experts meet; `codes` without biases, and with scales of blocks where 128 divides both sizes."""


def fp8_experts(
    library: Library,
    x: torch.Tensor,
    chosen: torch.Tensor,
    weights: torch.Tensor,
    packed: Fp8ExpertStacks,
    activation: Activation,
    shared: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `experts.experts`, with rows in bfloat16; hidden and intermediate are multiples of 16."""
    count = packed.gate_up.codes.shape[0]
    few, many = FP8_TILE_ROWS
    order = permute(library, chosen, count, few if chosen.numel() <= few * count else many)
    gate_up, biases = packed.gate_up, (packed.gate_up_bias, packed.down_bias)
    wide = grouped_fp8_weights(library, x, gate_up, order, biases[0], gather=True, activation=activation)
    return unpermute(library, grouped_fp8_weights(library, wide, packed.down, order, biases[1]), order, weights, shared)


def experts_of_codes(
    library: Library,
    x: torch.Tensor,
    chosen: torch.Tensor,
    weights: torch.Tensor,
    packed: Fp8ExpertStacks,
    activation: Activation,
    shared: torch.Tensor | None = None,
    *,
    tile: int,
    multiply: ProductOfGroups = grouped_fp8,
) -> torch.Tensor:
    """As `fp8_experts`, with rows as codes: tokens become codes on their way into the order of experts, and the gate
    leaves codes for the second product. `tile` is that of both products, which `multiply` makes."""
    scaling = packed.gate_up.scaling
    order = permute(library, chosen, packed.gate_up.codes.shape[0], FP8_TILE_ROWS[-1])
    wide = multiply(library, gather_codes(library, x, order, scaling), packed.gate_up, order, tile=tile)
    gated = gated_mul_fp8(library, wide, activation, scaling)
    return unpermute(library, multiply(library, gated, packed.down, order, tile=tile), order, weights, shared)


def tiles_agree(library: Library, scaling: StackScaling, multiply: ProductOfGroups) -> bool:
    """Whether this GPU gives a row the same bits through either tile, among few rows and among many; asked of it rather
    than assumed, because tiles differ in which operand the matrix units take from where."""
    generator, device = torch.Generator().manual_seed(1), library.device_type
    few, tokens, count, hidden, wide = 2, 72, 2, 512, 128

    def stack(n: int, k: int) -> Fp8Stack:
        drawn = [quantise_weight(torch.randn(n, k, generator=generator) / 16, scaling) for _ in range(count)]
        codes = torch.stack([each.codes.view(torch.uint8) for each in drawn]).view(torch.float8_e4m3fn)
        return Fp8Stack(codes.to(device), torch.stack([each.scales for each in drawn]).to(device), scaling)

    packed = Fp8ExpertStacks(stack(2 * wide, hidden), stack(hidden, wide), rows="codes")
    x = torch.randn(tokens, hidden, generator=generator).bfloat16().to(device)
    chosen = (torch.arange(tokens, device=device) % count).unsqueeze(1)
    ones = torch.ones(tokens, 1, device=device)

    def made(tile: int, rows: int) -> torch.Tensor:
        few_of = x[:rows], chosen[:rows], ones[:rows]
        return experts_of_codes(library, *few_of, packed, "silu", tile=tile, multiply=multiply)

    many = made(MANY, tokens)
    agree = torch.equal(made(FEW, tokens), many) and torch.equal(made(FEW, few), many[:few])
    if not agree:
        _log.warning("experts in FP8, scales of %s: tiles round differently; all rows take the tile for many", scaling)
    return agree
