"""The CPU kernels of `csrc/cpu` in this process: one instruction set, one pool of threads, weights re-laid for them.

Importing this loads no torch.
"""

from __future__ import annotations

from engine._native import Kernels, PackedLinear
from engine.weights import FLOAT_KINDS, StoredMatrix

QUANTISED_KINDS = frozenset({"q4_0", "q4_1", "q8_0"})
"""Types that are multiplied as files have them."""
KINDS = QUANTISED_KINDS | FLOAT_KINDS
KERNELS = Kernels("auto", 1)


def set_num_threads(num_threads: int) -> None:
    """Threads that share each native operation of this process, the caller included (1 until said otherwise).

    Results do not depend on it.
    """
    KERNELS.num_threads = num_threads


def isa() -> str:
    """The instruction set in use: `avx512`, `avx2` or `portable`. Results are the same on all of them."""
    return str(KERNELS.isa)


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
