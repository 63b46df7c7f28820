"""`python -m benchmarks.kernels.determinism [--json FILE]`: what a fixed order of every reduction costs, in time.

Ratios above 1 are what the fixed order costs. Three questions, answered at the sizes of real models:

*split*: the native kernels beside themselves with the order freed. Of one row, the depth of a product is split among
two threads; of one query, the cached positions are. Adding up the parts is not counted: all doubt is in the free
order's favour. This is what split-K and flash-decoding could win at most.
*library*: the native kernels beside torch's own (`mm`, `scaled_dot_product_attention`), which choose an order by size
and threads. One thread each. What one would get by giving exactness up for a library; the kernels differ in more than
order.
*reference*: the reference operations, plain torch in tiles of one size, beside plain torch: what models pay that no
native kernel computes.

Both sides take turns in one process; the least time of each counts: of the wall clock where two threads work, else of
this thread's CPU time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import torch

from engine._native import Kernels, PackedLinear
from engine.ops import reference
from engine.ops.native import NativeOps
from splice.bench.fingerprint import read_environment

THREADS = 2
BLOCK_TOKENS = 32
MATRICES = {
    "135M qkv": (960, 576),
    "135M down": (576, 1536),
    "135M head": (49152, 576),
    "8B output": (4096, 4096),
    "8B down": (4096, 14336),
}
"""Rows and columns of weights."""
HEADS = {"135M": (9, 3, 64), "8B": (32, 8, 128)}
"""Query heads, KV heads, their size."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two ways to a result of the same size, from as many bytes."""

    question: str
    name: str
    fixed: Callable[[], object]
    free: Callable[[], object]
    clock: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Cost:
    question: str
    name: str
    fixed_us: float
    free_us: float
    ratio: float


def measured(pair: Pair, budget_s: float = 1.5) -> Cost:
    """Turns until the budget is spent, at least 7."""
    best, end, turns = [float("inf"), float("inf")], time.monotonic() + budget_s, 0
    while turns < 7 or time.monotonic() < end:
        for side, work in enumerate((pair.fixed, pair.free)):
            start = pair.clock()
            work()
            best[side] = min(best[side], pair.clock() - start)
        turns += 1
    fixed, free = best
    return Cost(pair.question, pair.name, round(fixed * 1e6, 1), round(free * 1e6, 1), round(fixed / free, 3))


def split_products() -> Iterator[Pair]:
    kernels = Kernels("auto", THREADS)
    for kind, int8 in (("q4_1", True), ("float32", False)):
        for name, (n, k) in MATRICES.items():
            if n * k > 2**25 and kind == "float32":
                continue  # bound by memory like the one before it, and large

            def product(rows: int, columns: int, kind: str = kind, int8: bool = int8) -> Callable[[], object]:
                weight, x, out = packed(rows, columns, kind), draw(1, columns), np.empty((1, rows), np.float32)
                return partial(kernels.linear, out, x, weight, None, int8=int8)

            yield Pair("split", f"{name}, {kind}", product(n, k), product(n * THREADS, k // THREADS), time.perf_counter)


def split_attention() -> Iterator[Pair]:
    ops = NativeOps(Kernels("auto", THREADS))
    for name, heads in HEADS.items():
        for past in (512, 2048, 8192):
            one, parts = attending(ops, heads, [past]), attending(ops, heads, [past // THREADS] * THREADS)
            yield Pair("split", f"{name} attention after {past}", one, parts, time.perf_counter)


def library_products() -> Iterator[Pair]:
    kernels = Kernels("auto", 1)
    for name in ("135M qkv", "135M down", "8B output"):
        n, k = MATRICES[name]
        weight = torch.from_numpy(draw(n, k))
        own = PackedLinear(n, k, "float32")
        own.load(weight)
        for m in (1, 8, 64, 512):
            x, out = torch.from_numpy(draw(m, k)), torch.empty(m, n)
            fixed = partial(kernels.linear, out, x, own, None)
            free = partial(torch.mm, x, weight.t(), out=out)
            yield Pair("library", f"{name}, float32, {m} rows", fixed, free, time.thread_time)
            tiled = partial(reference.linear, x, weight, None)
            yield Pair("reference", f"{name}, float32, {m} rows", tiled, free, time.thread_time)


def library_attention() -> Iterator[Pair]:
    ops = NativeOps(Kernels("auto", 1))
    for name, (heads, kv_heads, size) in HEADS.items():
        for queries, past in ((1, 512), (1, 2048), (512, 0)):
            length = queries + past
            q = torch.randn(1, heads, queries, size)
            k, v = (torch.randn(1, kv_heads, length, size) for _ in range(2))
            free = partial(
                torch.nn.functional.scaled_dot_product_attention, q, k, v, is_causal=past == 0, enable_gqa=True
            )
            fixed = attending(ops, (heads, kv_heads, size), [past], queries)
            yield Pair("library", f"{name} attention, {queries} queries after {past}", fixed, free, time.thread_time)


def attending(ops: NativeOps, heads: tuple[int, int, int], pasts: list[int], queries: int = 1) -> Callable[[], object]:
    """Sequences of so many positions and then so many queries each, over float32."""
    q_heads, kv_heads, size = heads
    blocks = [-(-(past + queries) // BLOCK_TOKENS) for past in pasts]
    cache = torch.randn(sum(blocks), 1, 2, kv_heads, BLOCK_TOKENS, size)
    tables = torch.zeros(len(pasts), max(blocks), dtype=torch.int32)
    first = 0
    for row, count in enumerate(blocks):
        tables[row, :count] = torch.arange(first, first + count)
        first += count
    query_starts = torch.arange(len(pasts) + 1, dtype=torch.int32) * queries
    q, starts = torch.randn(len(pasts) * queries, q_heads, size), torch.tensor(pasts, dtype=torch.int32)
    return lambda: ops.paged_attention(q, cache, 0, tables, query_starts, starts, size**-0.5)


def draw(rows: int, columns: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(rows + columns).standard_normal((rows, columns), dtype=np.float32)


def packed(n: int, k: int, kind: str) -> PackedLinear:
    weight = PackedLinear(n, k, kind)
    if kind == "float32":
        weight.load(draw(n, k))
    else:
        weight.load_blocks(np.random.default_rng(n).integers(0, 60, (n, k // 32 * 20), dtype=np.uint8), kind)
    return weight


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels.determinism")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(words)
    torch.set_num_threads(1)
    costs = []
    for pairs in (split_products(), split_attention(), library_products(), library_attention()):
        for pair in pairs:
            cost = measured(pair)
            costs.append(cost)
            print(
                f"{cost.question:9} {cost.name:42} fixed {cost.fixed_us:10.1f} us  free {cost.free_us:10.1f} us"
                f"  ratio {cost.ratio:6.3f}",
                flush=True,
            )
    if chosen.json:
        record = {"environment": read_environment(), "isa": Kernels("auto", 1).isa, "costs": costs}
        chosen.json.write_bytes(msgspec.json.format(msgspec.json.encode(record)) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
