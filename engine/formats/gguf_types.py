"""Tensor types of GGUF files: what `ggml_type` numbers mean, and how much room a row takes (ggml's ggml.h)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GgufType:
    name: str
    """As ggml has it, in lower case."""
    block_elements: int
    block_bytes: int


TYPES: dict[int, GgufType] = {
    0: GgufType("f32", 1, 4),
    1: GgufType("f16", 1, 2),
    2: GgufType("q4_0", 32, 18),
    3: GgufType("q4_1", 32, 20),
    6: GgufType("q5_0", 32, 22),
    7: GgufType("q5_1", 32, 24),
    8: GgufType("q8_0", 32, 34),
    12: GgufType("q4_k", 256, 144),
    13: GgufType("q5_k", 256, 176),
    14: GgufType("q6_k", 256, 210),
    30: GgufType("bf16", 1, 2),
    39: GgufType("mxfp4", 32, 17),
}
"""Those that are read, by number."""
