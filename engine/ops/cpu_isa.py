"""Which instruction set the native kernels of this process use.

All give equal results, but for products with bfloat16 activations; a lower one than the best is for comparing them.
"""

from __future__ import annotations

import importlib
from typing import Literal, get_args

from wire.errors import ErrorCode, SpliceError

CpuIsa = Literal["auto", "amx", "avx512vnni", "avx512", "avxvnni", "avx2", "portable"]
"""`auto` is the best this machine has; the others are named from the best to the least."""
CPU_ISAS: tuple[CpuIsa, ...] = get_args(CpuIsa)


def choose_cpu_isa(isa: CpuIsa) -> None:
    """Kernels of `isa` from now on, for every model of this process; before `load_model`, whose `numerics_id` names it.

    Raises SpliceError: bad_setting if this machine lacks it, missing_part if there are no native kernels to choose.
    """
    try:
        native = importlib.import_module("engine._native")
        kernels = importlib.import_module("engine.ops.native_kernels").KERNELS
    except ImportError as error:
        if isa == "auto":
            return  # whoever loads a model says that they are missing
        raise SpliceError(
            ErrorCode.MISSING_PART,
            f"cpu_isa is {isa}, but the native kernels are not built ({error}): "
            "`make build` in a clone, or leave it auto",
            param="cpu_isa",
        ) from error
    has = native.supported_isas()
    if isa != "auto" and isa not in has:
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            f"cpu_isa is {isa}, which this machine or its system does not have; it has {', '.join(has)}",
            param="cpu_isa",
        )
    kernels.isa = isa
