"""A mixture's experts on the device: every token through the gated MLPs it chose.

No launch is sized by what the device alone knows, and the host waits for nothing: a captured graph replays for any
choice of experts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from engine.ops.cuda.grouped_gemm import TILE_ROWS, grouped_gemm
from engine.ops.cuda.grouped_sm90 import FEW_ROWS, grouped_gemm_sm90
from engine.ops.cuda.library import Library
from engine.ops.cuda.permutation import Permutation, gather_rows, permute, unpermute
from engine.ops.cuda.rows import gated_mul
from engine.ops.cuda.tensors import refuse
from engine.ops.weight_matrix import ExpertMatrices, stacked
from engine.spec import Activation

GroupedKernel = Literal["grouped_gemm", "grouped_sm90"]


@dataclass(frozen=True, slots=True)
class ExpertStacks:
    """The experts of a layer, bfloat16, contiguous."""

    gate_up: torch.Tensor
    """`[num_experts, 2 * intermediate, hidden]`, an expert's gate first."""
    down: torch.Tensor
    """`[num_experts, hidden, intermediate]`."""
    gate_up_bias: torch.Tensor | None = None
    """`[num_experts, 2 * intermediate]`."""
    down_bias: torch.Tensor | None = None
    """`[num_experts, hidden]`."""


def pack_experts(experts: Iterable[ExpertMatrices], count: int) -> ExpertStacks:
    """See `signatures.PackExpertsOp`: on the device that they are on, each copied into its stack as it comes."""
    stacks: list[torch.Tensor] = []
    for index, (one, _) in enumerate(zip(experts, range(count), strict=True)):
        biases = [bias for bias in (one.gate_up_bias, one.down_bias) if bias is not None]
        parts = [stacked(one.gate, one.up), stacked(one.down), *biases]
        if not stacks:
            stacks = [part.new_empty(count, *part.shape) for part in parts]
        for stack, part in zip(stacks, parts, strict=True):
            stack[index] = part
    if not stacks:
        raise refuse("experts", "empty", "one at least")
    return ExpertStacks(*stacks)


def tile_rows_for(choices: int, num_experts: int) -> int:
    """How many rows a tile has when experts share so many choices evenly: a matter of speed alone."""
    few, some, many = TILE_ROWS
    each = choices / num_experts
    return few if each <= few else some if each <= some else many


def experts(
    library: Library,
    x: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    packed: ExpertStacks,
    activation: Activation,
    shared: torch.Tensor | None = None,
    *,
    kernel: GroupedKernel = "grouped_gemm",
) -> torch.Tensor:
    """See `signatures.ExpertsOp`; bfloat16, rows of `x` perhaps strided, hidden and intermediate multiples of 8. A
    choice of an expert that is none of these adds nothing.

    `kernel` is part of the arithmetic; within each, how many rows there are shows in no bit. `grouped_sm90` is
    Hopper's, and takes no biases.
    """
    num_experts = packed.gate_up.shape[0]
    order = permute(library, experts, num_experts, tile_rows_for(experts.numel(), num_experts))
    if kernel == "grouped_sm90":
        made = _through_cutlass(library, x, packed, activation, order)
    elif kernel == "grouped_gemm":
        wide = grouped_gemm(library, x, packed.gate_up, order, packed.gate_up_bias, gather=True, activation=activation)
        made = grouped_gemm(library, wide, packed.down, order, packed.down_bias)
    else:
        raise refuse("kernel", repr(kernel), " or ".join(get_args(GroupedKernel)))
    return unpermute(library, made, order, weights, shared)


def _through_cutlass(
    library: Library, x: torch.Tensor, packed: ExpertStacks, activation: Activation, order: Permutation
) -> torch.Tensor:
    if packed.gate_up_bias is not None or packed.down_bias is not None:
        raise refuse("packed", "with biases", "none: grouped_sm90 adds none, grouped_gemm does")
    num_experts = packed.gate_up.shape[0]
    tile = 0 if order.places.numel() <= FEW_ROWS * num_experts else 1
    rows = gather_rows(library, x, order)
    wide = grouped_gemm_sm90(library, rows, packed.gate_up, order, tile=tile)
    return grouped_gemm_sm90(library, gated_mul(library, wide, activation), packed.down, order, tile=tile)
