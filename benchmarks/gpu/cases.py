"""What is measured: each kernel on the shapes of real models, with the bytes and operations it must move and do.

Inputs are random; where they would fit in the second-level cache, several sets take turns. Shapes are Llama 3.1 8B's
unless a case says otherwise: 32 query heads, 8 of KV, head_dim 128, hidden 4096, intermediate 14336, vocabulary 128256.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from engine.ops.cuda.attention import PagedRows, Scores, decode_attention, prefill_attention, workspace_bytes
from engine.ops.cuda.cache import PoolPart, copy_blocks, rope_and_store
from engine.ops.cuda.draw import DrawChoice, draw_columns, draw_on_device
from engine.ops.cuda.gemm import gemm
from engine.ops.cuda.library import Library
from engine.ops.cuda.rows import add_rms_norm, gated_mul

HEADS, KV_HEADS, HEAD_DIM, BLOCK = 32, 8, 128, 32
HIDDEN, WIDE, VOCAB = 4096, 14336, 128256
_ROTATED_BYTES = 256 << 20
"""Sets of inputs take turns until they are larger than any cache, or there are 16."""
_MOST_SETS = 16
Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Case:
    """`make` allocates and returns calls with inputs of their own. `rival` does the same work through torch."""

    name: str
    function: str
    moved_bytes: int
    operations: int
    make: Callable[[Library], list[Call]]
    rival: Callable[[], list[Call]] | None = None
    rival_name: str = ""


def cases() -> list[Case]:
    """In the order in which they are measured: first what decode needs most."""
    return [*_decode(), *_rows(), *_products(), *_prefill(), *_draws(), *_copies()]


def _random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=dtype)


def _sets(bytes_of_one: int) -> range:
    return range(max(1, min(_MOST_SETS, _ROTATED_BYTES // max(1, bytes_of_one))))


def _paged(batch: int, context: int, rows: int) -> tuple[torch.Tensor, PagedRows]:
    """A cache in which every sequence's blocks lie scattered, and the last `rows` positions of each as rows."""
    count = -(-context // BLOCK)
    tables = torch.randperm(batch * count, device="cuda").int().view(batch, count)
    cache = _random(batch * count, 1, 2, KV_HEADS, BLOCK, HEAD_DIM)
    begins = torch.arange(0, batch * rows + 1, rows, dtype=torch.int32, device="cuda")
    starts = torch.full((batch,), context - rows, dtype=torch.int32, device="cuda")
    return cache, PagedRows(tables, begins, starts, context, rows)


def _decode() -> Iterator[Case]:
    for batch, context in (
        (1, 8192),
        (1, 32768),
        (8, 8192),
        (64, 1024),
        (64, 4096),
        (64, 8192),
        (256, 1024),
        (256, 4096),
    ):
        moved = batch * context * KV_HEADS * HEAD_DIM * 4 + 2 * batch * HEADS * HEAD_DIM * 2

        def make(library: Library, batch: int = batch, context: int = context, moved: int = moved) -> list[Call]:
            size = workspace_bytes(library, batch, HEADS, HEAD_DIM, context)
            workspace = torch.empty(size, dtype=torch.uint8, device="cuda")
            calls: list[Call] = []
            for _ in _sets(moved):
                cache, rows = _paged(batch, context, 1)
                q = _random(batch, HEADS, HEAD_DIM)
                calls.append(
                    lambda q=q, cache=cache, rows=rows: decode_attention(
                        library, q, cache, 0, rows, Scores(HEAD_DIM**-0.5), workspace
                    )
                )
            return calls

        yield Case(
            f"decode attention, batch {batch}, context {context}", "decode_attention", moved,
            4 * batch * context * HEADS * HEAD_DIM, make,
        )  # fmt: skip


def _prefill() -> Iterator[Case]:
    for tokens in (2048, 8192):
        pairs = tokens * (tokens + 1) // 2

        def make(library: Library, tokens: int = tokens) -> list[Call]:
            cache, rows = _paged(1, tokens, tokens)
            q = _random(tokens, HEADS, HEAD_DIM)
            return [lambda: prefill_attention(library, q, cache, 0, rows, Scores(HEAD_DIM**-0.5))]

        def rival(tokens: int = tokens) -> list[Call]:
            q = _random(1, HEADS, tokens, HEAD_DIM)
            k, v = (_random(1, KV_HEADS, tokens, HEAD_DIM) for _ in range(2))
            attend = torch.nn.functional.scaled_dot_product_attention
            return [lambda: attend(q, k, v, is_causal=True, enable_gqa=True)]

        moved = 2 * tokens * (2 * HEADS + 2 * KV_HEADS) * HEAD_DIM
        name = f"prefill attention, causal, {tokens} tokens"
        yield Case(name, "prefill_attention", moved, 4 * pairs * HEADS * HEAD_DIM, make, rival, "torch SDPA")


def _rows() -> Iterator[Case]:
    for rows in (1, 64, 8192):

        def norm(library: Library, rows: int = rows) -> list[Call]:
            weight = _random(HIDDEN)
            sets = [(_random(rows, HIDDEN), _random(rows, HIDDEN)) for _ in _sets(8 * rows * HIDDEN)]
            return [lambda x=x, r=r: add_rms_norm(library, x, r, weight, 1e-5) for x, r in sets]

        yield Case(f"add and RMSNorm, {rows} rows", "rms_norm", 8 * rows * HIDDEN, 5 * rows * HIDDEN, norm)

        def gate(library: Library, rows: int = rows) -> list[Call]:
            sets = [_random(rows, 2 * WIDE) for _ in _sets(6 * rows * WIDE)]
            return [lambda x=x: gated_mul(library, x, "silu") for x in sets]

        yield Case(f"SwiGLU, {rows} rows", "gated_mul", 6 * rows * WIDE, 15 * rows * WIDE, gate)

        def rope(library: Library, rows: int = rows) -> list[Call]:
            cache, paged = _paged(1, max(rows, BLOCK), rows)
            angles = torch.rand(rows, HEAD_DIM, device="cuda")
            positions = torch.arange(rows, device="cuda")
            slots = paged.block_tables[0].long()[positions // BLOCK] * BLOCK + positions % BLOCK
            sets = [_random(rows, HEADS + 2 * KV_HEADS, HEAD_DIM) for _ in _sets(4 * rows * 48 * HEAD_DIM)]
            last = HEADS + KV_HEADS
            return [
                lambda x=x: rope_and_store(
                    library, x[:, :HEADS], x[:, HEADS:last], x[:, last:], positions, angles, cache, 0, slots
                )
                for x in sets
            ]

        moved = rows * (4 * (HEADS + 2 * KV_HEADS) * HEAD_DIM + 4 * HEAD_DIM)
        yield Case(f"rope and KV write, {rows} rows", "rope_store", moved, 6 * rows * 40 * HEAD_DIM, rope)


def _products() -> Iterator[Case]:
    shapes = {"qkv": (6144, HIDDEN), "gate and up": (2 * WIDE, HIDDEN), "down": (HIDDEN, WIDE)}
    for (name, (n, k)), m in itertools.product(shapes.items(), (1, 64, 1024, 8192)):
        moved = 2 * (m * k + n * k + m * n)

        def operands(m: int = m, n: int = n, k: int = k, moved: int = moved) -> list[tuple[torch.Tensor, torch.Tensor]]:
            return [(_random(m, k), _random(n, k)) for _ in _sets(moved)]

        def rival(operands: Callable[[], Sequence[tuple[torch.Tensor, torch.Tensor]]] = operands) -> list[Call]:
            return [lambda x=x, w=w: torch.nn.functional.linear(x, w) for x, w in operands()]

        for kernel, tiles in (("gemm_sm90", (0,) if m <= 64 else (1,)), ("gemm_sm80", (0,) if m <= 64 else (1,))):
            for tile in tiles:

                def make(
                    library: Library,
                    operands: Callable[[], Sequence[tuple[torch.Tensor, torch.Tensor]]] = operands,
                    kernel: str = kernel,
                    tile: int = tile,
                ) -> list[Call]:
                    return [lambda x=x, w=w: gemm(library, x, w, kernel=kernel, tile=tile) for x, w in operands()]

                title = f"{name} product, {m} rows, {kernel} tile {tile}"
                yield Case(title, kernel, moved, 2 * m * n * k, make, rival, "torch")


def _draws() -> Iterator[Case]:
    kinds = {
        "greedy": DrawChoice(0.0, 1, 1),
        "plain": DrawChoice(1.0, 1, 1),
        "top_k 50": DrawChoice(1.0, 1, 1, top_k=50),
        "top_p 0.9": DrawChoice(1.0, 1, 1, top_p=0.9),
    }
    for (name, choice), rows in itertools.product(kinds.items(), (1, 64)):

        def make(library: Library, choice: DrawChoice = choice, rows: int = rows) -> list[Call]:
            sets = [_random(rows, VOCAB, dtype=torch.float32) * 3 for _ in range(2)]
            columns = draw_columns([choice] * rows, torch.device("cuda"))
            return [lambda x=x: draw_on_device(library, x, columns) for x in sets]

        yield Case(f"draw, {name}, {rows} rows", "draw", 4 * rows * VOCAB, rows * VOCAB, make)


def _copies() -> Iterator[Case]:
    for blocks in (32, 1024):
        layers, moved = 32, 2 * blocks * 32 * 2 * KV_HEADS * BLOCK * HEAD_DIM * 2

        def make(library: Library, blocks: int = blocks, layers: int = layers) -> list[Call]:
            pool = _random(2 * blocks, layers, 2, KV_HEADS, BLOCK, HEAD_DIM)
            buffer = torch.empty_like(pool[:blocks])
            ids = torch.randperm(2 * blocks, device="cuda")[:blocks].contiguous()
            return [lambda: copy_blocks(library, PoolPart(buffer, None), PoolPart(pool, ids), blocks, layers, KV_HEADS)]

        yield Case(f"gather of {blocks} KV blocks of 32 layers", "kv_copy", moved, 0, make)
