"""Runners of what is done row by row: `add_rms_norm` and `silu_mul`, SwiGLU's gate."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from functools import partial
from types import ModuleType

import torch

from engine.ops import reference
from engine.ops.cuda.library import Library
from engine.ops.cuda.rows import add_rms_norm, gated_mul
from engine.tuning.runner import Inputs, Run, Runner, Tunable
from engine.tuning.shapes import Shape

_log = logging.getLogger(__name__)
NORM, GATE = "add_rms_norm", "silu_mul"
_EPS = 1e-5
_TOLERANCE = 1e-2
"""Of two roundings to bfloat16, and a reference that others round at other places."""
_CHUNK, MOST_COLUMNS = 8, 32768
"""A row of our kernels is whole chunks of so many elements; one of Triton's is held by one program."""


def add_norm(library: Library | None, device: torch.device) -> Tunable:
    """`Shape(NORM, size, size)`: ours, Triton's and FlashInfer's where they are installed, torch's."""
    runners: list[Runner] = []
    if library is not None and library.has("rms_norm"):
        runners.append(Runner("norm", True, partial(add_rms_norm, library), _whole_chunks))
    triton_rows = _installed(device, "triton", "engine.ops.triton.rows")
    if triton_rows is not None:
        runners.append(Runner(f"triton-{_version('triton')}", True, triton_rows.add_rms_norm, _fits_a_program))
    others = _installed(device, "flashinfer", "flashinfer.norm")
    if others is not None:
        runners.append(Runner(f"flashinfer-{_version('flashinfer')}", False, _in_place(others)))
    runners.append(Runner(f"torch-{torch.__version__}", False, reference.add_rms_norm))
    make = partial(_make_norm, device)
    return Tunable(NORM, tuple(runners), make, _norm_rows, _exact_norm, _norm_bytes, _TOLERANCE)


def silu_mul(library: Library | None, device: torch.device) -> Tunable:
    """`Shape(GATE, size, 2·size)`: as `add_norm`."""
    runners: list[Runner] = []
    if library is not None and library.has("gated_mul"):
        runners.append(Runner("gate", True, lambda gate_up: gated_mul(library, gate_up, "silu"), _whole_chunks))
    triton_rows = _installed(device, "triton", "engine.ops.triton.rows")
    if triton_rows is not None:
        runners.append(Runner(f"triton-{_version('triton')}", True, triton_rows.silu_mul))
    others = _installed(device, "flashinfer", "flashinfer.activation")
    if others is not None:
        runners.append(Runner(f"flashinfer-{_version('flashinfer')}", False, others.silu_and_mul))
    runners.append(Runner(f"torch-{torch.__version__}", False, partial(reference.gated_mul, activation="silu")))
    make = partial(_make_gate, device)
    return Tunable(GATE, tuple(runners), make, _gate_rows, _exact_gate, _gate_bytes, _TOLERANCE)


def _installed(device: torch.device, package: str, module: str) -> ModuleType | None:
    """The module, where there is a GPU to run it and the package. One that is there and does not import is left out and
    said."""
    if device.type != "cuda" or importlib.util.find_spec(package) is None:
        return None
    try:
        return importlib.import_module(module)
    except Exception as error:
        _log.warning("%s is installed and no candidate: %s", package, error)
        return None


def _version(package: str) -> str:
    return str(getattr(importlib.import_module(package), "__version__", "unknown"))


def _in_place(norms: ModuleType) -> Run:
    def run(
        x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        norms.fused_add_rmsnorm(x, residual, weight, eps)
        return x, residual

    return run


def _whole_chunks(shape: Shape, rows: int) -> str | None:
    del rows
    return None if shape.n % _CHUNK == 0 else f"rows of {shape.n} elements are no multiple of {_CHUNK}"


def _fits_a_program(shape: Shape, rows: int) -> str | None:
    del rows
    return None if shape.n <= MOST_COLUMNS else f"rows of {shape.n} elements do not fit a program's registers"


def _drawn(device: torch.device, seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)


def _make_norm(device: torch.device, shape: Shape, rows: int, seed: int) -> Inputs:
    x, residual = _drawn(device, seed, 2, rows, shape.n)
    return x, residual, _drawn(device, seed + 1, shape.n), _EPS


def _norm_rows(inputs: Inputs, places: slice) -> Inputs:
    """Copies: runners may write into both."""
    x, residual, weight, eps = inputs
    return x[places].clone(), residual[places].clone(), weight, eps


def _exact_norm(inputs: Inputs) -> tuple[torch.Tensor, ...]:
    x, residual, weight, eps = inputs
    total = x.double() + residual.double()
    return total / (total.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double(), total


def _norm_bytes(shape: Shape, rows: int) -> int:
    return 8 * rows * shape.n


def _make_gate(device: torch.device, shape: Shape, rows: int, seed: int) -> Inputs:
    return (_drawn(device, seed, rows, shape.k),)


def _gate_rows(inputs: Inputs, places: slice) -> Inputs:
    return (inputs[0][places],)


def _exact_gate(inputs: Inputs) -> tuple[torch.Tensor, ...]:
    gate, up = inputs[0].double().chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up,)


def _gate_bytes(shape: Shape, rows: int) -> int:
    return 2 * rows * (shape.k + shape.n)
