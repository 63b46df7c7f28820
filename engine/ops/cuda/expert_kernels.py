"""Which grouped product a mixture's step takes: one arithmetic whatever the step, and within it the faster kernel."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from engine.ops.cuda.experts import ExpertStacks, GroupedKernel, experts
from engine.ops.cuda.library import Library
from engine.spec import Activation

_log = logging.getLogger(__name__)
MANY_ROWS = 64
"""Of an expert on average: beyond, the matrix units bound a product, and Hopper's are faster through wgmma."""


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """By how many rows experts have."""

    few: GroupedKernel
    many: GroupedKernel

    def of(self, choices: int, packed: ExpertStacks) -> GroupedKernel:
        """Of a step with so many choices of these experts. Biases are a matter of the layer, never of the step."""
        if packed.gate_up_bias is not None or packed.down_bias is not None:
            return "grouped_gemm"
        return self.many if choices > MANY_ROWS * packed.gate_up.shape[0] else self.few


def choice_of(*, kernels_agree: bool, tiles_agree: bool) -> KernelChoice:
    """`kernels_agree`: whether both kernels give a row the same bits; `tiles_agree`: whether Hopper's two tiles do."""
    if kernels_agree and tiles_agree:
        return KernelChoice("grouped_gemm", "grouped_sm90")
    return KernelChoice("grouped_sm90", "grouped_sm90") if tiles_agree else KernelChoice("grouped_gemm", "grouped_gemm")


class CudaExperts:
    """`ExpertsOp` on one library."""

    def __init__(self, library: Library, *, is_hopper: bool) -> None:
        self._library = library
        has_both = is_hopper and library.has("grouped_sm90_gemm")
        self._choice = _asked(library) if has_both else KernelChoice("grouped_gemm", "grouped_gemm")

    @property
    def name(self) -> str:
        """Of the arithmetic."""
        return self._choice.few

    def __call__(
        self,
        x: torch.Tensor,
        chosen: torch.Tensor,
        weights: torch.Tensor,
        packed: ExpertStacks,
        activation: Activation,
        shared: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `signatures.ExpertsOp`."""
        kernel = self._choice.of(chosen.numel(), packed)
        return experts(self._library, x, chosen, weights, packed, activation, shared, kernel=kernel)


def _asked(library: Library) -> KernelChoice:
    """What this GPU says: whether kernels agree is asked of it rather than assumed, because they differ in which
    operand the matrix units take from where."""
    generator, device = torch.Generator().manual_seed(1), library.device_type
    few, tokens, count, size = 2, 384, 2, 512

    def drawn(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * scale).bfloat16().to(device)

    packed = ExpertStacks(drawn(count, 2 * size, size, scale=1 / 16), drawn(count, size, size, scale=1 / 16))
    x, chosen = drawn(tokens, size), (torch.arange(tokens, device=device) % count).unsqueeze(1)
    ones = torch.ones(tokens, 1, device=device)

    def made(kernel: GroupedKernel, rows: int) -> torch.Tensor:
        return experts(library, x[:rows], chosen[:rows], ones[:rows], packed, "silu", kernel=kernel)

    hopper = made("grouped_sm90", tokens)
    choice = choice_of(
        kernels_agree=torch.equal(made("grouped_gemm", tokens), hopper),
        tiles_agree=torch.equal(made("grouped_sm90", few), hopper[:few]),
    )
    _log.info("experts: %s for few rows, %s for many", choice.few, choice.many)
    return choice
