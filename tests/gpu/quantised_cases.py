"""Random quantised matrices as GGUF files have them, and what their values and products are.

The reference is this project's CPU kernels; on a machine without them, which only a GPU machine is, the emulator,
which the same tests hold to the CPU's bits elsewhere.
"""

from __future__ import annotations

import importlib.util

import kernel_platform
import numpy as np
import torch

from engine.ops.cuda.block_products import block_gemm, block_rows, pack_weight, quantise_rows
from engine.ops.weight_matrix import QuantizedMatrix

_SIZES = {"q4_0": (18, 1), "q4_1": (20, 2), "q5_0": (22, 1), "q8_0": (34, 1)}
"""Bytes of a block of 32, and how many fp16 numbers it begins with."""
CPU = torch.device("cpu")


def has_cpu_kernels() -> bool:
    return importlib.util.find_spec("engine._native") is not None


def matrix_of(n: int, k: int, kind: str) -> QuantizedMatrix:
    """Every bit of a quant is drawn. Scales have either sign; one is zero, and some are denormal in fp16."""
    size, halves = _SIZES[kind]
    generator = np.random.default_rng(n * 1000 + k)
    blocks = generator.integers(0, 256, (n, k // 32, size), dtype=np.uint8)
    scales = generator.uniform(-0.01, 0.01, (n, k // 32, halves)).astype(np.float16)
    scales[0, 0] = 0.0
    scales[-1, -1] *= np.float16(1e-3)
    blocks[:, :, : 2 * halves] = scales.view(np.uint8)
    return QuantizedMatrix(kind, (n, k), blocks.reshape(n, -1))


def activations(m: int, k: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """With a small block in every row and one of zeros in the last."""
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(m + k))
    x[:, :32] *= 1e-3
    x[-1, -32:] = 0.0
    return x.to(dtype)


def values_of(matrix: QuantizedMatrix) -> torch.Tensor:
    """`[n, k]` float32."""
    ids = torch.arange(matrix.shape[0])
    if has_cpu_kernels():
        from engine.ops.native import NativeOps

        return NativeOps.rows(NativeOps.pack(matrix), ids)
    return block_rows(kernel_platform.emulated().library, pack_weight(matrix, CPU), ids)


def product_of(x: torch.Tensor, matrix: QuantizedMatrix, bias: torch.Tensor | None = None) -> torch.Tensor:
    """In x's dtype."""
    if has_cpu_kernels():
        from engine._native import Kernels
        from engine.ops.native import NativeOps

        return NativeOps(Kernels("auto", 1), "int8").linear(x, NativeOps.pack(matrix), bias)
    library = kernel_platform.emulated().library
    return block_gemm(library, quantise_rows(library, x), pack_weight(matrix, CPU), bias, out_dtype=x.dtype)
