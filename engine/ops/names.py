"""The operations a model is made of, by name."""

from __future__ import annotations

from typing import Literal

OpName = Literal["linear", "lm_head", "rms_norm", "add_rms_norm", "rope_and_store", "paged_attention", "gated_mul"]
OP_NAMES: tuple[OpName, ...] = (
    "linear",
    "lm_head",
    "rms_norm",
    "add_rms_norm",
    "rope_and_store",
    "paged_attention",
    "gated_mul",
)
