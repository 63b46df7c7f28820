"""One thing to measure, and the inputs it is measured on.

Inputs are random; where they would fit in the second-level cache, several sets take turns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.gpu.ceilings import Precision
from engine.ops.cuda.attention import PagedRows
from engine.ops.cuda.library import Library

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, WIDE, VOCAB = 32, 8, 128, 4096, 14336, 128256
"""Of Llama 3.1 8B: shapes are its own unless a case says otherwise."""
BLOCK = 32
_ROTATED_BYTES = 256 << 20
"""Sets of inputs take turns until they are larger than any cache, or there are 16."""
_MOST_SETS = 16
Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Case:
    """`make` allocates and returns calls with inputs of their own. `rival` does the same work through torch.
    `precision` is that of the operations: it says which measured rate they are a share of."""

    name: str
    function: str
    moved_bytes: int
    operations: int
    make: Callable[[Library], list[Call]]
    rival: Callable[[], list[Call]] | None = None
    rival_name: str = ""
    precision: Precision = "bf16"
    goal: str = ""
    """The target this is a figure for, as `targets` names it; empty where it is for none."""
    group: str = ""
    """What several tiles or kernels do alike: the best of them counts. Empty where there is one."""
    is_exact: bool = True
    """Whether the exact mode may choose it."""


def drawn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Normally distributed."""
    return torch.randn(shape, device="cuda", dtype=dtype)


def require_memory(num_bytes: int) -> None:
    """Raises LookupError where the device has not so much, and a fifth more, left."""
    free, _ = torch.cuda.mem_get_info()
    if free < 1.2 * num_bytes:
        raise LookupError(f"not measured: takes {num_bytes / 2**30:.0f} GiB, the GPU has {free / 2**30:.0f} GiB left")


def sets(bytes_of_one: int) -> range:
    """As many turns as it takes that none finds its inputs in a cache."""
    return range(max(1, min(_MOST_SETS, _ROTATED_BYTES // max(1, bytes_of_one))))


def paged(batch: int, context: int, rows: int) -> tuple[torch.Tensor, PagedRows]:
    """A cache in which every sequence's blocks lie scattered, and the last `rows` positions of each as rows."""
    count = -(-context // BLOCK)
    tables = torch.randperm(batch * count, device="cuda").int().view(batch, count)
    cache = drawn(batch * count, 1, 2, KV_HEADS, BLOCK, HEAD_DIM)
    begins = torch.arange(0, batch * rows + 1, rows, dtype=torch.int32, device="cuda")
    starts = torch.full((batch,), context - rows, dtype=torch.int32, device="cuda")
    return cache, PagedRows(tables, begins, starts, context, rows)
