"""Triton's norms and gates through its compiler for Hopper, which needs no GPU: its interpreter forgives what that does
not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
ROOT = Path(__file__).resolve().parents[2]
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from engine.ops.triton import rows

def compiled(function, signature, constants, num_warps):
    # As a launch specialises: addresses and numbers are multiples of 16, a number that is 1 is no argument.
    names = list(signature)
    signature = {name: "constexpr" if name in constants else kind for name, kind in signature.items()}
    aligned = {
        (place,): [["tt.divisibility", 16]] for place, name in enumerate(names)
        if signature[name] == "i32" or signature[name].startswith("*")
    }
    source = ASTSource(function, signature, constants, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": num_warps})
    print(function.__name__, *constants.values(), ".target sm_90a" in made.asm["ptx"], len(made.asm["cubin"]) > 0)

norm = {"x": "*bf16", "x_stride": "i32", "residual": "*bf16", "weight": "*bf16", "y": "*bf16", "size": "i32",
        "eps": "fp32", "PADDED": "i32"}
for size in (1, 128, 4096, rows.MAX_SIZE):
    padded = triton.next_power_of_2(size)
    ones = {"x_stride": 1, "size": 1} if size == 1 else {}
    compiled(rows._add_norm_rows, norm, {**ones, "PADDED": padded}, rows._warps(padded))
gate = {"gate_up": "*bf16", "stride": "i32", "y": "*bf16", "size": "i32", "STRETCH": "i32"}
compiled(rows._silu_mul_rows, gate, {"STRETCH": rows._STRETCH}, 4)
compiled(rows._silu_mul_rows, gate, {"size": 1, "STRETCH": rows._STRETCH}, 4)
"""


def test_triton_compiles_every_kind_of_launch_for_hopper(tmp_path):
    """In a process of its own: here Triton may have been imported to interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], cwd=ROOT, env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "_add_norm_rows 1 1 1 True True",
        "_add_norm_rows 128 True True",
        "_add_norm_rows 4096 True True",
        "_add_norm_rows 32768 True True",
        "_silu_mul_rows 1024 True True",
        "_silu_mul_rows 1 1024 True True",
    ]
