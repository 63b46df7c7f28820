"""The operations a model is made of, by name."""

from __future__ import annotations

from typing import Literal, get_args

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
