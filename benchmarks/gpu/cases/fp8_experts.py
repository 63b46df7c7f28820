"""Mixtures of experts in FP8: whole layers with rows in bfloat16 and in codes, and the grouped products alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.cases.case import Call, Case, drawn, sets
from benchmarks.gpu.cases.experts import MANY, MIXTURES, TOKENS, Mixture, choices, dense
from engine.ops.cuda.fp8_expert_steps import FEW, Fp8ExpertStacks, experts_of_codes, fp8_experts
from engine.ops.cuda.fp8_expert_steps import MANY as MANY_TILE
from engine.ops.cuda.fp8_reference import BLOCK
from engine.ops.cuda.grouped_fp8 import gather_codes, grouped_fp8
from engine.ops.cuda.grouped_fp8_weights import (
    FP8_TILE_ROWS,
    STACKED,
    Fp8Stack,
    StackScaling,
    grouped_fp8_weights,
)
from engine.ops.cuda.grouped_sm90 import FEW_ROWS
from engine.ops.cuda.library import Library
from engine.ops.cuda.permutation import permute

_FUNCTIONS: dict[StackScaling, str] = {"rows": "grouped_fp8_gemm", "blocks": "grouped_fp8_blocks_gemm"}


def cases() -> Iterator[Case]:
    for one, tokens, scaling in itertools.product(MIXTURES, TOKENS, STACKED):
        rows, name = tokens * one.top_k, f"{one.name}, {tokens} tokens"
        weights, operations = one.weight_bytes(tokens) // 2, 6 * rows * one.hidden * one.wide
        of_rows = rows * (one.hidden + 4 * one.wide)
        yield Case(
            f"gate and up of {name}, codes, scales of {scaling}", _FUNCTIONS[scaling], weights * 2 // 3 + of_rows,
            operations * 2 // 3, partial(_products, one, tokens, scaling), partial(_dense_codes, one, tokens),
            "torch._scaled_mm of equal FLOP", "fp8", "grouped fp8 products" if tokens == MANY else "",
            f"{name}, codes, scales of {scaling}",
        )  # fmt: skip
        yield Case(
            f"gate and up of {name}, weights in e4m3 codes, scales of {scaling}", "grouped_fp8_weights",
            weights * 2 // 3 + of_rows + rows * one.hidden, operations * 2 // 3,
            partial(_weight_products, one, tokens, scaling), partial(dense, one, tokens),
            "dense product of equal FLOP, weights in bfloat16",
        )  # fmt: skip
        rest = 4 * tokens * one.hidden + rows * (3 * one.hidden + 5 * one.wide)
        yield Case(
            f"experts of {name}, codes, scales of {scaling}", _FUNCTIONS[scaling], weights + rest, operations,
            partial(_mixtures, one, tokens, scaling, True), precision="fp8",
        )  # fmt: skip
        yield Case(
            f"experts of {name}, weights in e4m3 codes, scales of {scaling}", "grouped_fp8_weights", weights + rest,
            operations, partial(_mixtures, one, tokens, scaling, False),
        )  # fmt: skip
    for one, scaling in itertools.product(MIXTURES, STACKED):
        moved = MANY * one.hidden * (2 + one.top_k)
        yield Case(
            f"codes into the order of experts, {one.name}, {MANY} tokens, scales of {scaling}", "gather_fp8", moved,
            10 * MANY * one.hidden, partial(_gathered, one, scaling),
        )  # fmt: skip


def _e4m3(*shape: int) -> torch.Tensor:
    return drawn(*shape).to(torch.float8_e4m3fn)


def _stack(count: int, n: int, k: int, scaling: StackScaling) -> Fp8Stack:
    shape = (n,) if scaling == "rows" else (-(-n // BLOCK), -(-k // BLOCK))
    return Fp8Stack(_e4m3(count, n, k), torch.rand(count, *shape, device="cuda") / k**0.5, scaling)


def _tile(one: Mixture, tokens: int) -> int:
    return FEW if tokens * one.top_k <= FEW_ROWS * one.num_experts else MANY_TILE


def _products(one: Mixture, tokens: int, scaling: StackScaling, library: Library) -> list[Call]:
    calls: list[Call] = []
    for _ in sets(one.weight_bytes(tokens) // 2):
        order = permute(library, choices(one, tokens), one.num_experts, FP8_TILE_ROWS[-1])
        x = gather_codes(library, drawn(tokens, one.hidden), order, scaling)
        weight = _stack(one.num_experts, 2 * one.wide, one.hidden, scaling)
        calls.append(partial(grouped_fp8, library, x, weight, order, tile=_tile(one, tokens)))
    return calls


def _weight_products(one: Mixture, tokens: int, scaling: StackScaling, library: Library) -> list[Call]:
    few, many = FP8_TILE_ROWS
    tile_rows = few if tokens * one.top_k <= few * one.num_experts else many
    calls: list[Call] = []
    for _ in sets(one.weight_bytes(tokens) // 2):
        order = permute(library, choices(one, tokens), one.num_experts, tile_rows)
        weight = _stack(one.num_experts, 2 * one.wide, one.hidden, scaling)
        calls.append(partial(grouped_fp8_weights, library, drawn(tokens, one.hidden), weight, order, gather=True))
    return calls


def _mixtures(one: Mixture, tokens: int, scaling: StackScaling, are_codes: bool, library: Library) -> list[Call]:
    calls: list[Call] = []
    for _ in sets(one.weight_bytes(tokens) // 2):
        gate_up = _stack(one.num_experts, 2 * one.wide, one.hidden, scaling)
        packed = Fp8ExpertStacks(gate_up, _stack(one.num_experts, one.hidden, one.wide, scaling))
        step = partial(partial(experts_of_codes, tile=_tile(one, tokens)) if are_codes else fp8_experts, library)
        shares = torch.rand(tokens, one.top_k, device="cuda")
        calls.append(partial(step, drawn(tokens, one.hidden), choices(one, tokens), shares, packed, "silu"))
    return calls


def _gathered(one: Mixture, scaling: StackScaling, library: Library) -> list[Call]:
    calls: list[Call] = []
    for _ in sets(MANY * one.hidden * (2 + one.top_k)):
        order = permute(library, choices(one, MANY), one.num_experts, FP8_TILE_ROWS[-1])
        calls.append(partial(gather_codes, library, drawn(MANY, one.hidden), order, scaling))
    return calls


def _dense_codes(one: Mixture, tokens: int) -> list[Call]:
    rows, wide = tokens * one.top_k, 2 * one.wide
    of_rows, of_columns = torch.rand(rows, 1, device="cuda"), torch.rand(1, wide, device="cuda")
    return [
        partial(
            torch._scaled_mm, _e4m3(rows, one.hidden), _e4m3(wide, one.hidden).t(), of_rows, of_columns,
            out_dtype=torch.bfloat16,
        )
        for _ in sets(2 * one.hidden * one.wide)
    ]  # fmt: skip
