"""Making the operators, once a process."""

from __future__ import annotations

import torch

from engine.ops.cuda.library import Library
from engine.ops.cuda.torch_operators import dense, experts, fp8, latents, quantised
from wire.errors import ErrorCode, SpliceError

NAMESPACE = "splice"
_KINDS = (dense, latents, experts, quantised, fp8)
_owner: list[tuple[Library, torch.library.Library]] = []
"""Of this process, one at most: torch's operators are the process's too."""


def register(library: Library) -> None:
    """Makes the operators, on this library; with the same one again nothing. Raises SpliceError for another."""
    if _owner:
        if _owner[0][0].path != library.path:
            raise SpliceError(
                ErrorCode.BAD_SETTING,
                f"torch.ops.{NAMESPACE} stands on {_owner[0][0].path}, not on {library.path}: expected one library a"
                " process",
            )
        return
    device = "CUDA" if library.device_type == "cuda" else "CPU"
    ours = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]
    for kind in _KINDS:
        real, fakes = kind.implementations(library), kind.fakes()
        for name, schema in kind.SCHEMAS.items():
            ours.define(name + schema)  # type: ignore[no-untyped-call]
            ours.impl(name, real[name], device)  # type: ignore[no-untyped-call]
            torch.library.register_fake(f"{NAMESPACE}::{name}", fakes[name], lib=ours)
    _owner.append((library, ours))
