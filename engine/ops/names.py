"""The operations a model is made of, by name."""

from __future__ import annotations

from typing import Literal, get_args

Activations = Literal["int8", "float32"]
"""What quantised weights are multiplied with: rows quantised to 8 bits in blocks of 32, exactly (the arithmetic is in
`csrc/cpu/int8_linear.h`), or rows as they are, the weights counting as their float32 values."""
ActivationsChoice = Literal["auto", "int8", "float32"]
"""`auto` is `int8` on native kernels. Weights that are not quantised do not heed it."""

OpsChoice = Literal["auto", "reference"]
"""`auto` takes the fastest operations there are, `reference` those of plain torch."""

OpName = Literal[
    "linear",
    "lm_head",
    "rms_norm",
    "add_rms_norm",
    "rope_and_store",
    "paged_attention",
    "gated_mul",
    "store_latents",
    "latent_attention",
    "route",
]
OP_NAMES: tuple[OpName, ...] = get_args(OpName)
