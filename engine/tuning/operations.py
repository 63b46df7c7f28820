"""Operations of a model that ask a table which runner to take: what connects tuning to `engine.ops`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch

from engine.ops.candidate import Candidate
from engine.ops.cuda.library import Library
from engine.ops.cuda.rows import add_rms_norm, gated_mul
from engine.ops.weight_matrix import WeightMatrix
from engine.spec import Activation, MlpSpec, ModelSpec
from engine.tuning import products, row_operations
from engine.tuning.decision import Mode
from engine.tuning.fp8_operations import TunedFp8
from engine.tuning.fp8_products import fp8_tunables
from engine.tuning.runner import Runner, Tunable
from engine.tuning.shapes import BUCKETS, Shape
from engine.tuning.table import TacticTable
from engine.tuning.tactic_counts import TacticCounts
from engine.tuning.tuner import Tuner

TunedMatrices = Literal["bfloat16", "fp8", "others"]
"""What a model's projections are."""
_RANK = 20
"""Before each kernel's own candidate."""


class TunedOperations:
    """Before `tune` the first runner that can is taken. Weights that are loaded meanwhile say which shapes there
    are."""

    def __init__(
        self, library: Library, device: torch.device, mode: Mode, *, matrices: TunedMatrices = "bfloat16"
    ) -> None:
        """`matrices` that are neither are multiplied by kernels of their own, and products are not tuned then."""
        self._library, self._mode = library, mode
        of_matrices: dict[TunedMatrices, tuple[Tunable, ...]] = {
            "bfloat16": (products.linear(library, device),),
            "fp8": fp8_tunables(library, device),
            "others": (),
        }
        by_rows = row_operations.add_norm, row_operations.silu_mul
        self.tunables: tuple[Tunable, ...] = (*of_matrices[matrices], *(each(library, device) for each in by_rows))
        self._table = TacticTable(self.tunables, mode, ())
        self._shapes: dict[Shape, None] = {}
        self.fp8 = TunedFp8(self._runner, self._note) if matrices == "fp8" else None
        """What products of matrices in FP8 ask, which are a candidate of their own."""

    @property
    def counts(self) -> TacticCounts:
        """Of look-ups since `tune`, for metrics."""
        return self._table.counts

    def candidates(self) -> Iterator[Candidate]:
        """Of operations that have a runner this mode may take."""
        offered = {
            products.OP: Candidate("linear", "tuned", self._linear, _is_bf16, _RANK, pack=self._pack),
            row_operations.NORM: Candidate("add_rms_norm", "tuned", self._add_rms_norm, _is_bf16, _RANK),
            row_operations.GATE: Candidate(
                "gated_mul", "tuned", self._gated_mul, _is_bf16, _RANK, frozenset({"gelu_tanh", "swiglu_oai"})
            ),
        }
        for tunable in self.tunables:
            if tunable.op in offered and any(runner.keeps_rows or self._mode == "fast" for runner in tunable.runners):
                yield offered[tunable.op]

    def tune(self, spec: ModelSpec, tuner: Tuner) -> Mapping[str, str]:
        """Tunes what the model `spec`, whose weights were loaded through these operations, is made of. `tuner` stands
        on `tunables`. Returns what belongs into its numerics id."""
        self._shapes |= dict.fromkeys(row_shapes(spec))
        able = [shape for shape in self._shapes if self._has_runner(shape)]
        self._table = TacticTable(self.tunables, self._mode, tuner.tune(able, self._mode).entries)
        return self._table.identity(able)

    def _has_runner(self, shape: Shape) -> bool:
        runners = [runner for tunable in self.tunables if tunable.op == shape.op for runner in tunable.runners]
        may = (runner for runner in runners if runner.keeps_rows or self._mode == "fast")
        return any(runner.refusal(shape, rows) is None for runner in may for rows in BUCKETS)

    def _pack(self, *parts: WeightMatrix) -> torch.Tensor:
        """See `signatures.PackOp`; of no quantised kind."""
        plain = [part for part in parts if isinstance(part, torch.Tensor)]
        if len(plain) < len(parts):
            raise TypeError("a quantised weight reached a tuned product, which takes plain tensors only")
        weight = plain[0] if len(plain) == 1 else torch.cat(plain)
        self._note(Shape(products.OP, weight.shape[0], weight.shape[1]))
        return weight

    def _runner(self, shape: Shape, rows: int) -> Runner:
        return self._table.runner(shape, rows)

    def _note(self, shape: Shape) -> None:
        self._shapes[shape] = None

    def _linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See `signatures.LinearOp`."""
        runner = self._table.runner(Shape(products.OP, weight.shape[0], weight.shape[1]), x.shape[0])
        y: torch.Tensor = runner.run(x, weight, bias)
        return y

    def _add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `signatures.AddRmsNormOp`. Weights in float32 are our kernel's alone."""
        if weight.dtype != torch.bfloat16:
            return add_rms_norm(self._library, x, residual, weight, eps)
        runner = self._table.runner(Shape(row_operations.NORM, x.shape[1], x.shape[1]), x.shape[0])
        found: tuple[torch.Tensor, torch.Tensor] = runner.run(x, residual, weight, eps)
        return found

    def _gated_mul(self, gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
        """See `signatures.GatedMulOp`. Gates other than SwiGLU's are our kernel's alone."""
        if activation != "silu":
            return gated_mul(self._library, gate_up, activation)
        rows, width = gate_up.shape
        y: torch.Tensor = self._table.runner(Shape(row_operations.GATE, width // 2, width), rows).run(gate_up)
        return y


def row_shapes(spec: ModelSpec) -> Sequence[Shape]:
    """Of a model's norms and of the SwiGLU gates outside of experts: others are one kernel's alone."""
    dense = [layer.mlp if isinstance(layer.mlp, MlpSpec) else layer.mlp.shared for layer in spec.layers]
    gates = {mlp.intermediate_size for mlp in dense if mlp is not None and mlp.activation == "silu"}
    norm = Shape(row_operations.NORM, spec.hidden_size, spec.hidden_size)
    return (norm, *(Shape(row_operations.GATE, size, 2 * size) for size in sorted(gates)))


def _is_bf16(dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16
