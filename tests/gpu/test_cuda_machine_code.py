"""No kernel keeps in memory what belongs in registers, as the compiler itself says: read off the output of `make cuda`,
which nobody compiles a second time for."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gpu.machine_code import MachineCode, machine_code, serialised_products

COMPILED = Path(__file__).resolve().parents[2] / "build" / "cuda" / "compiled.log"
"""Of what was compiled last."""
TOLERATED = {
    # 128 registers are all there are where two blocks are to fit. A thread of tiles of 128 rows puts two numbers aside
    # between one tile and the next, not between products.
    "grouped_gemm_cu": 8,
    # The same on sm_80 alone; one word is read again in each step of 64 products of fragments.
    "head_products_cu": 8,
    # Of head_dim 128 alone, and where scores are capped: one word, put aside while a tile's are.
    "prefill_attention_sm90_cu": 8,
}
"""Bytes of local memory, by what a kernel's name contains."""

SAID = """\
[1/2] CUDA norm
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN6splice4cuda4normEv' for 'sm_90'
ptxas info    : Function properties for _ZN6splice4cuda4normEv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers
ptxas info    : Compile time = 12.000 ms
ptxas info    : Compiling entry function '_ZN6splice4cuda4gateEv' for 'sm_90a'
ptxas info    : Function properties for _ZN6splice4cuda4gateEv
    24 bytes stack frame, 16 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 255 registers
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to insufficient \
register resources for the wgmma pipeline crossing function boundary at a function call in the function 'gate'
"""


def test_the_compilers_words_are_understood():
    assert machine_code(SAID) == [
        MachineCode("_ZN6splice4cuda4normEv", "sm_90", 40, 0),
        MachineCode("_ZN6splice4cuda4gateEv", "sm_90a", 255, 24),
    ]
    (line,) = serialised_products(SAID)
    assert line.startswith("ptxas info    : (C7510)")


def test_kernels_keep_to_registers_and_products_are_not_waited_for():
    if not COMPILED.exists():
        pytest.skip("no kernels were compiled here: make cuda, where nvcc is")
    said = COMPILED.read_text()
    kernels = machine_code(said)
    if not kernels:
        pytest.skip(f"{COMPILED} is of a build that had nothing to compile")
    assert serialised_products(said) == []
    over = [one for one in kernels if one.local_bytes > _tolerated(one)]
    assert over == [], (
        "spilled registers, or an array in local memory: mend the kernel, or say here why it does no harm"
    )


def _tolerated(one: MachineCode) -> int:
    return max((bytes for name, bytes in TOLERATED.items() if name in one.kernel), default=0)
