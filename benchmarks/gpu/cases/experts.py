"""Mixtures of experts: routing, every token through its experts, and the grouped products alone. Choices are spread
evenly."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.gpu.cases.case import Call, Case, drawn, sets
from engine.ops.cuda.experts import ExpertStacks, GroupedKernel, experts, tile_rows_for
from engine.ops.cuda.grouped_gemm import grouped_gemm
from engine.ops.cuda.grouped_sm90 import FEW_ROWS, grouped_gemm_sm90
from engine.ops.cuda.library import Library
from engine.ops.cuda.permutation import gather_rows, permute
from engine.ops.cuda.route import route
from engine.spec import RoutingSpec

_KERNELS: tuple[GroupedKernel, ...] = ("grouped_gemm", "grouped_sm90")
_FUNCTIONS: dict[GroupedKernel, str] = {"grouped_gemm": "grouped_gemm", "grouped_sm90": "grouped_sm90_gemm"}
MANY = 8192
"""Tokens with which products are bound by arithmetic, as dense ones of equal FLOP are."""
TOKENS = (1, 64, MANY)


@dataclass(frozen=True, slots=True)
class Mixture:
    """The sizes of a layer."""

    name: str
    hidden: int
    wide: int
    num_experts: int
    top_k: int

    def used(self, tokens: int) -> int:
        """How many experts are chosen at all."""
        return min(self.num_experts, tokens * self.top_k)

    def weight_bytes(self, tokens: int) -> int:
        """In bfloat16."""
        return self.used(tokens) * 6 * self.hidden * self.wide


MIXTURES = (Mixture("Qwen3-30B-A3B", 2048, 768, 128, 8), Mixture("Mixtral 8x7B", 4096, 14336, 8, 2))


def cases() -> Iterator[Case]:
    for one, tokens in itertools.product(MIXTURES, TOKENS):
        rows, name = tokens * one.top_k, f"{one.name}, {tokens} tokens"
        rest = 4 * tokens * one.hidden + 4 * rows * (one.wide + one.hidden)
        moved, operations = one.weight_bytes(tokens) + rest, 6 * rows * one.hidden * one.wide
        loop, of_dense = partial(_loops, one, tokens), partial(dense, one, tokens)
        gate_up = one.weight_bytes(tokens) * 2 // 3 + 2 * rows * (one.hidden + 2 * one.wide)
        for kernel in _KERNELS:
            make, alone = partial(_mixtures, one, tokens, kernel), partial(_products, one, tokens, kernel)
            function = _FUNCTIONS[kernel]
            yield Case(
                f"experts of {name}, {kernel}", function, moved, operations, make, loop, "loop over experts",
                goal="experts", group=name,
            )  # fmt: skip
            yield Case(
                f"gate and up of {name}, {kernel}", function, gate_up, operations * 2 // 3, alone, of_dense,
                "dense product of equal FLOP", goal="grouped products" if tokens == MANY else "", group=name,
            )  # fmt: skip
    for tokens in (1, 8192):
        moved = tokens * (128 * 4 + 8 * 12)
        yield Case(f"route among 128 experts, {tokens} tokens", "route", moved, tokens * 128, partial(_routes, tokens))


def _stacks(one: Mixture) -> ExpertStacks:
    return ExpertStacks(drawn(one.num_experts, 2 * one.wide, one.hidden), drawn(one.num_experts, one.hidden, one.wide))


def choices(one: Mixture, tokens: int) -> torch.Tensor:
    """Every expert as often as any other."""
    order = torch.randperm(one.num_experts, device="cuda")
    return order[torch.arange(tokens * one.top_k, device="cuda") % one.num_experts].view(tokens, one.top_k)


def _mixtures(one: Mixture, tokens: int, kernel: GroupedKernel, library: Library) -> list[Call]:
    shares = torch.rand(tokens, one.top_k, device="cuda")
    return [
        partial(
            experts, library, drawn(tokens, one.hidden), choices(one, tokens), shares, _stacks(one), "silu",
            kernel=kernel,
        )
        for _ in sets(one.weight_bytes(tokens))
    ]  # fmt: skip


def _products(one: Mixture, tokens: int, kernel: GroupedKernel, library: Library) -> list[Call]:
    """Without the gate, which the rival has not either."""
    rows, wide = tokens * one.top_k, 2 * one.wide
    calls: list[Call] = []
    for _ in sets(one.weight_bytes(tokens)):
        x, weight = drawn(tokens, one.hidden), drawn(one.num_experts, wide, one.hidden)
        order = permute(library, choices(one, tokens), one.num_experts, tile_rows_for(rows, one.num_experts))
        if kernel == "grouped_gemm":
            calls.append(partial(grouped_gemm, library, x, weight, order, gather=True))
            continue
        tile = 0 if rows <= FEW_ROWS * one.num_experts else 1
        calls.append(partial(grouped_gemm_sm90, library, gather_rows(library, x, order), weight, order, tile=tile))
    return calls


def dense(one: Mixture, tokens: int) -> list[Call]:
    """One product of as many operations as gates and ups have."""
    rows, wide, turns = tokens * one.top_k, 2 * one.wide, sets(4 * one.hidden * one.wide)
    return [partial(torch.nn.functional.linear, drawn(rows, one.hidden), drawn(wide, one.hidden)) for _ in turns]


def _loops(one: Mixture, tokens: int) -> list[Call]:
    """With the tokens of each expert known beforehand, which spares the loop its waits."""

    def loop(
        x: torch.Tensor, own: list[torch.Tensor], shares: list[torch.Tensor], packed: ExpertStacks
    ) -> torch.Tensor:
        out = torch.zeros(x.shape, dtype=torch.float32, device="cuda")
        for expert, rows in enumerate(own):
            if not len(rows):
                continue
            gate, up = torch.nn.functional.linear(x[rows], packed.gate_up[expert]).chunk(2, dim=-1)
            made = torch.nn.functional.linear(torch.nn.functional.silu(gate) * up, packed.down[expert])
            out.index_add_(0, rows, made * shares[expert])
        return out.to(x.dtype)

    calls: list[Call] = []
    for _ in sets(one.weight_bytes(tokens)):
        ids = choices(one, tokens)
        own = [(ids == expert).any(dim=1).nonzero().flatten() for expert in range(one.num_experts)]
        shares = [torch.rand(len(rows), 1, device="cuda") for rows in own]
        calls.append(partial(loop, drawn(tokens, one.hidden), own, shares, _stacks(one)))
    return calls


def _routes(tokens: int, library: Library) -> list[Call]:
    routing = RoutingSpec(128, 8, "softmax", normalise=True)
    turns = sets(tokens * 128 * 4)
    return [partial(route, library, routing, drawn(tokens, 128, dtype=torch.float32), None) for _ in turns]
