"""The CPU kernels of `csrc/cpu` in this process: one instruction set, one pool of threads, weights re-laid for them.

Importing this loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine._native import Kernels, PackedLinear
from engine.ops.names import Activations, OpName
from engine.weights import FLOAT_KINDS, StoredMatrix

QUANTISED_KINDS = frozenset({"q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k"})
"""Types that are multiplied as files have them."""
KINDS = QUANTISED_KINDS | FLOAT_KINDS
KERNELS = Kernels("auto", 1)


def set_num_threads(num_threads: int) -> None:
    """Threads that share each native operation of this process, the caller included (1 until said otherwise).

    Results do not depend on it.
    """
    KERNELS.num_threads = num_threads


def isa() -> str:
    """The instruction set in use, for example `avx2`. Results are the same on all of them."""
    return str(KERNELS.isa)


def product_name(activations: Activations) -> str:
    """Of the implementation of `linear` and `lm_head`: the activations are part of its arithmetic."""
    return "native" if activations == "float32" else f"native_{activations}"


def implementations(activations: Activations, operations: Iterable[OpName]) -> dict[OpName, str]:
    """Whose each of a native step's operations is."""
    return {name: product_name(activations) if name in ("linear", "lm_head") else "native" for name in operations}


def pack(*parts: StoredMatrix) -> PackedLinear:
    """Parts stacked by rows and re-laid in the same precision; parts of different ones in float32."""
    kinds = {part.kind for part in parts}
    rows, columns = sum(part.shape[0] for part in parts), parts[0].shape[1]
    packed = PackedLinear(rows, columns, kinds.pop() if len(kinds) == 1 else "float32")
    first = 0
    for part in parts:
        if part.kind in FLOAT_KINDS:
            packed.load(part.data, first)
        else:
            packed.load_blocks(part.data, part.kind, first)
        first += part.shape[0]
    return packed
