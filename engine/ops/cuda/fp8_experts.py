"""A mixture's experts with weights in e4m3 codes.

On Hopper the rows they meet become codes too, under a scale a row or, where weights have scales of blocks, one for
each 128 elements; those that a file has for them are not used, as a token becomes codes once for all of its experts.
Elsewhere, where asked for, and in layers with biases or of sizes that blocks do not divide, rows stay bfloat16. A layer
decides which, never the number of rows. One whose experts are not all quantised alike, or of sizes that no kernel
takes, is widened to bfloat16.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from engine.ops.cuda.expert_kernels import CudaExperts
from engine.ops.cuda.experts import ExpertStacks, pack_experts
from engine.ops.cuda.fp8_expert_steps import FEW, MANY, Fp8ExpertStacks, experts_of_codes, fp8_experts, tiles_agree
from engine.ops.cuda.fp8_products import MOST_K, in_bfloat16, on_device
from engine.ops.cuda.fp8_reference import BLOCK, Fp8Matrix
from engine.ops.cuda.grouped_fp8 import ProductOfGroups
from engine.ops.cuda.grouped_fp8_weights import Fp8Stack, StackScaling
from engine.ops.cuda.grouped_sm90 import FEW_ROWS
from engine.ops.cuda.library import Library
from engine.ops.cuda.tensors import refuse
from engine.ops.weight_matrix import ExpertMatrices, WeightMatrix
from engine.spec import Activation

_log = logging.getLogger(__name__)


class Fp8Experts:
    """`ExpertsOp` on one library, and its `PackExpertsOp`."""

    def __init__(
        self,
        library: Library,
        device: torch.device,
        plain: CudaExperts,
        *,
        quantises: bool = False,
        multiply: ProductOfGroups | None = None,
    ) -> None:
        """`plain` computes layers in bfloat16; `quantises`: whether those become codes. `multiply` makes products of
        codes with codes; None: rows stay bfloat16."""
        self._library, self._device, self._plain, self._quantises = library, device, plain, quantises
        self._multiply = multiply
        self._tiles_agree: dict[StackScaling, bool] = {}
        """Of scalings that a layer has; asked when the first one is loaded."""

    @property
    def name(self) -> str:
        """Of the arithmetic."""
        product = "grouped_fp8_weights" if self._multiply is None else "grouped_fp8"
        return f"{product}{'_quantised_here' if self._quantises else ''}+{self._plain.name}"

    def pack(self, experts: Iterable[ExpertMatrices], count: int) -> Fp8ExpertStacks | ExpertStacks:
        """See `signatures.PackExpertsOp`."""
        stacks: _Stacks | None = None
        rest = iter(experts)
        for index, one in enumerate(rest):
            found = [self._coded(part) for part in (one.gate, one.up, one.down)]
            coded = [part for part in found if isinstance(part, Fp8Matrix)]
            if stacks is None and len(coded) == len(found):
                stacks = _Stacks(coded, one, count)
            if stacks is None or not stacks.take(index, found, one):
                if stacks is not None or coded:
                    _log.warning("experts of a layer are quantised in different ways: all are widened to bfloat16")
                before = iter(()) if stacks is None else stacks.widened(index)
                return pack_experts(itertools.chain(before, map(self._widened, itertools.chain((one,), rest))), count)
        if stacks is None or index + 1 != count:
            raise refuse("experts", "too few", f"{count}, one at least")
        done = stacks.done()
        if self._multiply is None or not _meets_codes(done):
            return done
        scaling = done.down.scaling
        if scaling not in self._tiles_agree:
            self._tiles_agree[scaling] = tiles_agree(self._library, scaling, self._multiply)
        return replace(done, rows="codes")

    def __call__(
        self,
        x: torch.Tensor,
        chosen: torch.Tensor,
        weights: torch.Tensor,
        packed: Fp8ExpertStacks | ExpertStacks,
        activation: Activation,
        shared: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `signatures.ExpertsOp`."""
        if isinstance(packed, ExpertStacks):
            return self._plain(x, chosen, weights, packed, activation, shared)
        if packed.rows == "codes" and self._multiply is not None:
            is_few = chosen.numel() <= FEW_ROWS * packed.gate_up.codes.shape[0]
            tile = FEW if is_few and self._tiles_agree[packed.gate_up.scaling] else MANY
            return experts_of_codes(
                self._library, x, chosen, weights, packed, activation, shared, tile=tile, multiply=self._multiply
            )
        return fp8_experts(self._library, x, chosen, weights, packed, activation, shared)

    def _coded(self, part: WeightMatrix) -> Fp8Matrix | torch.Tensor:
        return on_device(part, self._device, quantises=self._quantises)

    def _widened(self, one: ExpertMatrices) -> ExpertMatrices:
        parts = (on_device(part, self._device, quantises=False) for part in (one.gate, one.up, one.down))
        gate, up, down = (in_bfloat16(part) if isinstance(part, Fp8Matrix) else part for part in parts)
        return ExpertMatrices(gate, up, down, one.gate_up_bias, one.down_bias)


class _Stacks:
    """The experts of a layer as they come, one by one."""

    def __init__(self, first: list[Fp8Matrix], one: ExpertMatrices, count: int) -> None:
        self._scalings = [part.scaling for part in first]
        self._codes = [_room(count, torch.uint8, *parts) for parts in _pairs([each.codes for each in first])]
        self._scales = [_room(count, torch.float32, *parts) for parts in _pairs([each.scales for each in first])]
        self._biases = [
            None if bias is None else bias.new_empty(count, *bias.shape) for bias in (one.gate_up_bias, one.down_bias)
        ]

    def take(self, index: int, parts: list[Fp8Matrix | torch.Tensor], one: ExpertMatrices) -> bool:
        """Whether it is of the others' make, and has been put beside them."""
        coded = [part for part in parts if isinstance(part, Fp8Matrix)]
        if [part.scaling for part in coded] != self._scalings or self._scalings[0] != self._scalings[1]:
            return False
        for stack, own in zip(self._codes, _pairs([part.codes.view(torch.uint8) for part in coded]), strict=True):
            stack[index] = torch.cat(own)
        for stack, own in zip(self._scales, _pairs([part.scales for part in coded]), strict=True):
            stack[index] = torch.cat(own)
        for biases, bias in zip(self._biases, (one.gate_up_bias, one.down_bias), strict=True):
            if biases is not None and bias is not None:
                biases[index] = bias
        return True

    def widened(self, count: int) -> Iterator[ExpertMatrices]:
        """Those that were taken, in bfloat16."""
        done = self.done()
        for index in range(count):
            gate_up, down = (_of(stack, index) for stack in (done.gate_up, done.down))
            wide = done.gate_up.codes.shape[1] // 2
            of_gate_up, of_down = (None if stack is None else stack[index] for stack in self._biases)
            gate, up = (in_bfloat16(_rows(gate_up, first, wide)) for first in (0, wide))
            yield ExpertMatrices(gate, up, in_bfloat16(down), of_gate_up, of_down)

    def done(self) -> Fp8ExpertStacks:
        gate_up, down = (
            Fp8Stack(codes.view(torch.float8_e4m3fn), scales, "blocks" if scaling == "blocks" else "rows")
            for codes, scales, scaling in zip(self._codes, self._scales, self._scalings[1:], strict=True)
        )
        of_gate_up, of_down = self._biases
        return Fp8ExpertStacks(gate_up, down, of_gate_up, of_down)


def _meets_codes(packed: Fp8ExpertStacks) -> bool:
    """Whether products of codes with codes take this layer."""
    has_biases = packed.gate_up_bias is not None or packed.down_bias is not None
    _, hidden, wide = packed.down.codes.shape
    fits = packed.down.scaling == "rows" or hidden % BLOCK == wide % BLOCK == 0
    return fits and not has_biases and max(hidden, wide) <= MOST_K


def _pairs(parts: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Gate and up, and down."""
    gate, up, down = parts
    return [[gate, up], [down]]


def _room(count: int, dtype: torch.dtype, *parts: torch.Tensor) -> torch.Tensor:
    shape = (count, sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return torch.empty(shape, dtype=dtype, device=parts[0].device)


def _of(stack: Fp8Stack, index: int) -> Fp8Matrix:
    return Fp8Matrix(stack.codes[index], stack.scales[index], stack.scaling)


def _rows(matrix: Fp8Matrix, first: int, count: int) -> Fp8Matrix:
    """Half of a gate and an up, each of which has its own blocks."""
    own = slice(first, first + count)
    half = len(matrix.scales) // 2
    scales = matrix.scales[own] if matrix.scaling == "rows" else matrix.scales[half * (first > 0) :][:half]
    return Fp8Matrix(matrix.codes[own], scales, matrix.scaling)
