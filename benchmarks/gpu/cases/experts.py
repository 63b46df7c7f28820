"""Mixtures of experts: routing, every token through its experts, and the grouped products alone. Choices are spread
evenly."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch

from benchmarks.gpu.cases.case import Call, Case, drawn, sets
from engine.ops.cuda.experts import ExpertStacks, GroupedKernel, experts, tile_rows_for
from engine.ops.cuda.fp8_reference import BLOCK
from engine.ops.cuda.grouped_fp8_weights import FP8_TILE_ROWS, Fp8Stack, grouped_fp8_weights
from engine.ops.cuda.grouped_gemm import grouped_gemm
from engine.ops.cuda.grouped_sm90 import FEW_ROWS, Scales, grouped_gemm_sm90
from engine.ops.cuda.library import Library
from engine.ops.cuda.permutation import gather_rows, permute
from engine.ops.cuda.route import route
from engine.spec import RoutingSpec

_KERNELS: tuple[GroupedKernel, ...] = ("grouped_gemm", "grouped_sm90")
_FUNCTIONS: dict[GroupedKernel, str] = {"grouped_gemm": "grouped_gemm", "grouped_sm90": "grouped_sm90_gemm"}
_MANY = 8192
"""Tokens with which products are bound by arithmetic, as dense ones of equal FLOP are."""
_TOKENS = (1, 64, _MANY)
_Scaling = Literal["rows", "blocks"]
_SCALINGS: tuple[_Scaling, ...] = get_args(_Scaling)


@dataclass(frozen=True, slots=True)
class _Mixture:
    name: str
    hidden: int
    wide: int
    num_experts: int
    top_k: int

    def used(self, tokens: int) -> int:
        """How many experts are chosen at all."""
        return min(self.num_experts, tokens * self.top_k)

    def weight_bytes(self, tokens: int) -> int:
        return self.used(tokens) * 6 * self.hidden * self.wide


_MIXTURES = (_Mixture("Qwen3-30B-A3B", 2048, 768, 128, 8), _Mixture("Mixtral 8x7B", 4096, 14336, 8, 2))


def cases() -> Iterator[Case]:
    for one, tokens in itertools.product(_MIXTURES, _TOKENS):
        rows, name = tokens * one.top_k, f"{one.name}, {tokens} tokens"
        rest = 4 * tokens * one.hidden + 4 * rows * (one.wide + one.hidden)
        moved, operations = one.weight_bytes(tokens) + rest, 6 * rows * one.hidden * one.wide
        loop, dense = partial(_loops, one, tokens), partial(_dense, one, tokens)
        gate_up = one.weight_bytes(tokens) * 2 // 3 + 2 * rows * (one.hidden + 2 * one.wide)
        for kernel in _KERNELS:
            make, alone = partial(_mixtures, one, tokens, kernel), partial(_products, one, tokens, kernel)
            function = _FUNCTIONS[kernel]
            yield Case(
                f"experts of {name}, {kernel}", function, moved, operations, make, loop, "loop over experts",
                goal="experts", group=name,
            )  # fmt: skip
            yield Case(
                f"gate and up of {name}, {kernel}", function, gate_up, operations * 2 // 3, alone, dense,
                "dense product of equal FLOP", goal="grouped products" if tokens == _MANY else "", group=name,
            )  # fmt: skip
        rows_bytes, weight_bytes = rows * (one.hidden + 4 * one.wide), one.weight_bytes(tokens) // 3
        codes, of_torch = partial(_codes, one, tokens), partial(_dense_codes, one, tokens)
        yield Case(
            f"gate and up of {name}, e4m3 codes", "grouped_fp8_gemm", weight_bytes + rows_bytes, operations * 2 // 3,
            codes, of_torch, "torch._scaled_mm of equal FLOP", "fp8",
        )  # fmt: skip
        for scaling in _SCALINGS:
            yield Case(
                f"gate and up of {name}, weights in e4m3 codes, scales of {scaling}", "grouped_fp8_weights",
                weight_bytes + rows_bytes + rows * one.hidden, operations * 2 // 3,
                partial(_weight_codes, one, tokens, scaling), dense, "dense product of equal FLOP, weights in bfloat16",
            )  # fmt: skip
    for tokens in (1, 8192):
        moved = tokens * (128 * 4 + 8 * 12)
        yield Case(f"route among 128 experts, {tokens} tokens", "route", moved, tokens * 128, partial(_routes, tokens))


def _stacks(one: _Mixture) -> ExpertStacks:
    return ExpertStacks(drawn(one.num_experts, 2 * one.wide, one.hidden), drawn(one.num_experts, one.hidden, one.wide))


def _choices(one: _Mixture, tokens: int) -> torch.Tensor:
    order = torch.randperm(one.num_experts, device="cuda")
    return order[torch.arange(tokens * one.top_k, device="cuda") % one.num_experts].view(tokens, one.top_k)


def _mixtures(one: _Mixture, tokens: int, kernel: GroupedKernel, library: Library) -> list[Call]:
    shares = torch.rand(tokens, one.top_k, device="cuda")
    return [
        partial(
            experts, library, drawn(tokens, one.hidden), _choices(one, tokens), shares, _stacks(one), "silu",
            kernel=kernel,
        )
        for _ in sets(one.weight_bytes(tokens))
    ]  # fmt: skip


def _products(one: _Mixture, tokens: int, kernel: GroupedKernel, library: Library) -> list[Call]:
    """Without the gate, which the rival has not either."""
    rows, wide = tokens * one.top_k, 2 * one.wide
    calls: list[Call] = []
    for _ in sets(one.weight_bytes(tokens)):
        x, weight = drawn(tokens, one.hidden), drawn(one.num_experts, wide, one.hidden)
        order = permute(library, _choices(one, tokens), one.num_experts, tile_rows_for(rows, one.num_experts))
        if kernel == "grouped_gemm":
            calls.append(partial(grouped_gemm, library, x, weight, order, gather=True))
            continue
        tile = 0 if rows <= FEW_ROWS * one.num_experts else 1
        calls.append(partial(grouped_gemm_sm90, library, gather_rows(library, x, order), weight, order, tile=tile))
    return calls


def _dense(one: _Mixture, tokens: int) -> list[Call]:
    rows, wide, turns = tokens * one.top_k, 2 * one.wide, sets(4 * one.hidden * one.wide)
    return [partial(torch.nn.functional.linear, drawn(rows, one.hidden), drawn(wide, one.hidden)) for _ in turns]


def _codes(one: _Mixture, tokens: int, library: Library) -> list[Call]:
    rows, wide = tokens * one.top_k, 2 * one.wide
    calls: list[Call] = []
    for _ in sets(one.weight_bytes(tokens) // 2):
        order = permute(library, _choices(one, tokens), one.num_experts, tile_rows_for(rows, one.num_experts))
        x, weight = _e4m3(rows, one.hidden), _e4m3(one.num_experts, wide, one.hidden)
        scales = Scales(torch.rand(rows, device="cuda"), torch.rand(one.num_experts, wide, device="cuda"))
        tile = 0 if rows <= FEW_ROWS * one.num_experts else 1
        calls.append(partial(grouped_gemm_sm90, library, x, weight, order, scales, tile=tile))
    return calls


def _weight_codes(one: _Mixture, tokens: int, scaling: _Scaling, library: Library) -> list[Call]:
    rows, wide = tokens * one.top_k, 2 * one.wide
    few, many = FP8_TILE_ROWS
    shape = (wide,) if scaling == "rows" else (-(-wide // BLOCK), -(-one.hidden // BLOCK))
    calls: list[Call] = []
    for _ in sets(one.weight_bytes(tokens) // 2):
        tile_rows = few if rows <= few * one.num_experts else many
        order = permute(library, _choices(one, tokens), one.num_experts, tile_rows)
        scales = torch.rand(one.num_experts, *shape, device="cuda")
        weight = Fp8Stack(_e4m3(one.num_experts, wide, one.hidden), scales, scaling)
        calls.append(partial(grouped_fp8_weights, library, drawn(tokens, one.hidden), weight, order, gather=True))
    return calls


def _dense_codes(one: _Mixture, tokens: int) -> list[Call]:
    rows, wide = tokens * one.top_k, 2 * one.wide
    of_rows, of_columns = torch.rand(rows, 1, device="cuda"), torch.rand(1, wide, device="cuda")
    return [
        partial(
            torch._scaled_mm, _e4m3(rows, one.hidden), _e4m3(wide, one.hidden).t(), of_rows, of_columns,
            out_dtype=torch.bfloat16,
        )
        for _ in sets(2 * one.hidden * one.wide)
    ]  # fmt: skip


def _e4m3(*shape: int) -> torch.Tensor:
    return drawn(*shape).to(torch.float8_e4m3fn)


def _loops(one: _Mixture, tokens: int) -> list[Call]:
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
        ids = _choices(one, tokens)
        own = [(ids == expert).any(dim=1).nonzero().flatten() for expert in range(one.num_experts)]
        shares = [torch.rand(len(rows), 1, device="cuda") for rows in own]
        calls.append(partial(loop, drawn(tokens, one.hidden), own, shares, _stacks(one)))
    return calls


def _routes(tokens: int, library: Library) -> list[Call]:
    routing = RoutingSpec(128, 8, "softmax", normalise=True)
    turns = sets(tokens * 128 * 4)
    return [partial(route, library, routing, drawn(tokens, 128, dtype=torch.float32), None) for _ in turns]
