"""Where on a GPU a model goes; without torch, for those who only say so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPlace:
    """Which GPU, and what is captured there."""

    index: int = 0
    max_num_seqs: int = 64
    enforce_eager: bool = False
    """Launches every step and captures none: a start in less time, steps that take longer."""
    is_quantised: bool = False
    """Whether matrices that are quantised stay so and meet int8 activations; otherwise all are bfloat16."""
    fp8_rows: Literal["codes", "bfloat16"] | None = None
    """What matrices of FP8 codes meet, which stay so, where the GPU leaves a choice; None: there are none."""
    quantises: bool = False
    """Whether matrices in bfloat16 become FP8 codes as well."""
    tactics: Path | None = None
    """The folder where measured choices among kernels are kept; None: nothing is measured, ranks choose."""
    is_deterministic: bool = True
    """Of measured choices: whether rows decide on none."""
