"""The CPU kernels of `csrc/cpu` in this process: one instruction set, one pool of threads, weights re-laid for them.

Importing this loads no torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from engine._native import Kernels, PackedLinear
from engine.ops.names import Activations, OpName
from engine.weights import FLOAT_KINDS, StoredMatrix

QUANTISED_KINDS = frozenset({"q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k", "mxfp4"})
"""Types that are multiplied as files have them."""
KINDS = QUANTISED_KINDS | FLOAT_KINDS
KERNELS = Kernels("auto", 1)
_PANEL = 16
"""Rows of a packed weight that lie together."""


def set_num_threads(num_threads: int) -> None:
    """Threads that share each native operation of this process, the caller included (1 until said otherwise).

    Results do not depend on it.
    """
    KERNELS.num_threads = num_threads


def isa() -> str:
    """The instruction set in use, for example `avx2`. Results are the same on all of them."""
    return str(KERNELS.isa)


def product_name(activations: Activations) -> str:
    """Of the implementation of `linear`, `lm_head` and `experts`: the activations are part of its arithmetic."""
    return "native" if activations == "float32" else f"native_{activations}"


def implementations(activations: Activations, operations: Iterable[OpName]) -> dict[OpName, str]:
    """Whose each of a native step's operations is."""
    products = {"linear", "lm_head", "experts"}
    return {name: product_name(activations) if name in products else "native" for name in operations}


Packed: TypeAlias = PackedLinear | tuple[PackedLinear, ...]
"""A weight re-laid for the kernels: where its parts differ in type, one after another."""


def pack(*parts: StoredMatrix) -> Packed:
    """Parts stacked by rows and re-laid, all in the precision they came in."""
    runs = [list(run) for _, run in itertools.groupby(parts, key=lambda part: part.kind)]
    packed = tuple(_pack_run(run) for run in runs)
    return packed[0] if len(packed) == 1 else packed


def _pack_run(parts: Sequence[StoredMatrix]) -> PackedLinear:
    packed = PackedLinear(sum(part.shape[0] for part in parts), parts[0].shape[1], parts[0].kind)
    _load(packed, parts, 0)
    return packed


def _load(packed: PackedLinear, parts: Sequence[StoredMatrix], first: int) -> None:
    for part in parts:
        if part.kind in FLOAT_KINDS:
            packed.load(part.data, first)
        else:
            packed.load_blocks(part.data, part.kind, first)
        first += part.shape[0]


def pack_stack(matrices: Iterable[Sequence[StoredMatrix]], count: int) -> Packed:
    """`count` matrices of one shape one after another, each on a panel of its own and given as parts stacked by rows;
    taken one at a time, so that no more than one need be in memory unpacked.

    Raises MixedKindsError when they are not all of the same kinds.
    """
    kinds: list[str] = []
    packed: list[PackedLinear] = []
    for index, parts in enumerate(matrices):
        runs = [list(run) for _, run in itertools.groupby(parts, key=lambda part: part.kind)]
        if not packed:
            kinds = [run[0].kind for run in runs]
            packed = [PackedLinear(count * _padded(run), run[0].shape[1], run[0].kind) for run in runs]
        if [run[0].kind for run in runs] != kinds:
            raise MixedKindsError(f"matrix {index} is {[run[0].kind for run in runs]}, those before it {kinds}")
        for stack, run in zip(packed, runs, strict=True):
            _load(stack, run, index * _padded(run))
    return packed[0] if len(packed) == 1 else tuple(packed)


class MixedKindsError(Exception):
    """Matrices that cannot be stacked as they are."""


def _padded(parts: Sequence[StoredMatrix]) -> int:
    return -(-sum(part.shape[0] for part in parts) // _PANEL) * _PANEL
