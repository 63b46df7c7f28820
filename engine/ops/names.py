"""The operations a model is made of, by name."""

from __future__ import annotations

from typing import Literal, get_args

Activations = Literal["int8", "bfloat16", "float32"]
"""What weights are multiplied with on native kernels.

`int8`: under quantised weights, rows quantised to 8 bits in blocks of 32, exactly (the arithmetic is in
`csrc/cpu/int8_linear.h`); under others, as `float32`. `bfloat16`: rows rounded to bfloat16, quantised weights counting
as their values rounded to it, sums in float32. `float32`: rows as they are, weights counting as their float32 values.
Float32 weights stay that in all of them."""
ActivationsChoice = Literal["auto", "int8", "bfloat16", "float32"]
"""`auto` on native kernels is `int8`, or `bfloat16` for files that are not quantised where there are tiles for it.
On a GPU matrices in FP8 meet codes where it multiplies them (Hopper), or bfloat16, which may be asked for."""

QuantizationChoice = Literal["auto", "fp8"]
"""`auto` leaves matrices as files have them; `fp8` makes e4m3 codes of those in bfloat16, a scale a row, on a GPU."""

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
    "experts",
]
OP_NAMES: tuple[OpName, ...] = get_args(OpName)
