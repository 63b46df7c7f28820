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

_BLOCKS = {
    "q4_0": (32, 18, 0, 1),
    "q4_1": (32, 20, 0, 2),
    "q5_0": (32, 22, 0, 1),
    "q5_1": (32, 24, 0, 2),
    "q8_0": (32, 34, 0, 1),
    "mxfp4": (32, 17, 0, 0),
    "q4_k": (256, 144, 0, 2),
    "q5_k": (256, 176, 0, 2),
    "q6_k": (256, 210, 208, 1),
}
"""Elements and bytes of a block, where its fp16 numbers are and how many it has."""
CPU = torch.device("cpu")


def has_cpu_kernels() -> bool:
    return importlib.util.find_spec("engine._native") is not None


def depth_of(kind: str, k: int) -> int:
    """A depth a matrix of this kind can have, near `k`."""
    return max(256, k // 256 * 256) if kind.endswith("_k") else k


def matrix_of(n: int, k: int, kind: str) -> QuantizedMatrix:
    """Every bit of a quant is drawn. Scales have either sign; one is zero, and some are denormal in fp16."""
    elements, size, first, halves = _BLOCKS[kind]
    generator = np.random.default_rng(n * 1000 + k)
    blocks = generator.integers(0, 256, (n, k // elements, size), dtype=np.uint8)
    if halves == 0:
        blocks[:, :, 0] = generator.integers(110, 125, blocks.shape[:2])  # exponents
        return QuantizedMatrix(kind, (n, k), blocks.reshape(n, -1))
    scales = generator.uniform(-0.01, 0.01, (n, k // elements, halves)).astype(np.float16)
    scales[0, 0] = 0.0
    scales[-1, -1] *= np.float16(1e-3)
    blocks[:, :, first : first + 2 * halves] = scales.view(np.uint8)
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
