"""The CPU kernels of `csrc/cpu` as candidates beside the torch reference.

Every output element is one fixed chain of float32 operations, equal for any number of rows, threads and any
instruction set (see `csrc/cpu/splice_cpu.h`). Weights stay in the precision they came in: bfloat16 is widened in
registers, and types of 4 to 8 bits are multiplied with activations quantised for them, or dequantised in registers.
Activations are float32 inside; bfloat16 ones are widened on the way in and rounded once on the way out.
"""

from __future__ import annotations

import numpy as np
import torch

from engine._native import Kernels, PackedLinear
from engine.ops.candidate import Candidate
from engine.ops.experts import GatheredExperts
from engine.ops.head_norms import HeadNorms
from engine.ops.latent_attention import StoreLatents
from engine.ops.names import Activations
from engine.ops.native_decoder import routing_of
from engine.ops.native_kernels import KERNELS, QUANTISED_KINDS, Packed, pack, product_name
from engine.ops.weight_matrix import QuantizedMatrix, WeightMatrix
from engine.spec import Activation, RoutingSpec
from engine.steps.step_plan import StepBounds
from engine.weights import StoredMatrix

_RANK = 10


class NativeOps:
    """The operations of `signatures`, bound to one instruction set and one pool of threads."""

    def __init__(self, kernels: Kernels, activations: Activations = "float32") -> None:
        self._kernels = kernels
        self._int8, self._bf16 = activations == "int8", activations == "bfloat16"

    def set_num_threads(self, num_threads: int) -> None:
        """Threads that share each operation, the caller included. Results do not depend on it."""
        self._kernels.num_threads = num_threads

    @staticmethod
    def pack(*parts: WeightMatrix) -> Packed:
        """See `signatures.PackOp`: re-laid, all in the precision they came in."""
        return pack(*(_stored(part) for part in parts))

    @staticmethod
    def rows(weight: PackedLinear, ids: torch.Tensor) -> torch.Tensor:
        """See `signatures.RowsOp`; float32."""
        out = torch.empty(len(ids), weight.k)
        weight.rows(ids, out)
        return out

    def linear(self, x: torch.Tensor, weight: Packed, bias: torch.Tensor | None) -> torch.Tensor:
        """See `signatures.LinearOp`."""
        return self._product(x, weight, None if bias is None else bias.float()).to(x.dtype)

    def lm_head(self, x: torch.Tensor, weight: Packed) -> torch.Tensor:
        """See `signatures.LmHeadOp`."""
        return self._product(x, weight, None)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """See `signatures.RmsNormOp`."""
        out = torch.empty(x.shape)
        self._kernels.rms_norm(out, x.float(), None, weight, eps)
        return out.to(x.dtype)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `signatures.AddRmsNormOp`; a float32 `residual` is updated in place."""
        if residual.dtype != torch.float32:
            total = x + residual
            return self.rms_norm(total, weight, eps), total
        residual = residual.contiguous()
        out = torch.empty(x.shape)
        self._kernels.rms_norm(out, x.float(), residual, weight, eps)
        return out, residual

    def rope_and_store(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        positions: torch.Tensor,
        cos_sin: torch.Tensor,
        kv_cache: torch.Tensor,
        layer: int,
        slots: torch.Tensor,
        norms: HeadNorms | None = None,
    ) -> torch.Tensor:
        """See `signatures.RopeAndStoreOp`."""
        if norms is not None:
            q, k = norms.apart(self.rms_norm, q, k)
        out = torch.empty(q.shape)
        wide = q.float(), k.float(), v.float()
        self._kernels.rope_and_store(out, *wide, positions, cos_sin, kv_cache, layer, slots)
        return out.to(q.dtype)

    def paged_attention(
        self,
        q: torch.Tensor,
        kv_cache: torch.Tensor,
        layer: int,
        block_tables: torch.Tensor,
        query_starts: torch.Tensor,
        starts: torch.Tensor,
        scale: float,
        *,
        window: int | None = None,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
        bounds: StepBounds | None = None,
    ) -> torch.Tensor:
        """See `signatures.PagedAttentionOp`."""
        out = torch.empty(q.shape)
        tables = block_tables, query_starts, starts
        extras = window or 0, softcap or 0.0, sinks
        self._kernels.paged_attention(out, q.float(), kv_cache, layer, *tables, scale, *extras)
        return out.to(q.dtype)

    def gated_mul(self, gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
        """See `signatures.GatedMulOp`."""
        out = torch.empty(gate_up.shape[0], gate_up.shape[1] // 2)
        self._kernels.gated_mul(out, gate_up.float(), activation)
        return out.to(gate_up.dtype)

    def route(
        self, routing: RoutingSpec, logits: torch.Tensor, score_bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `signatures.RouteOp`."""
        experts = torch.empty(len(logits), routing.top_k, dtype=torch.int64)
        weights = torch.empty(len(logits), routing.top_k)
        bias = None if score_bias is None else score_bias.numpy()
        self._kernels.route(experts, weights, logits, routing_of(routing, None, bias))
        return experts, weights

    def _product(self, x: torch.Tensor, weight: Packed, bias: torch.Tensor | None) -> torch.Tensor:
        parts = weight if isinstance(weight, tuple) else (weight,)
        out, wide, first = torch.empty(x.shape[0], sum(part.n for part in parts)), x.float(), 0
        for part in parts:
            columns = slice(first, first + part.n)
            own = None if bias is None else bias[columns]
            self._kernels.linear(out[:, columns], wide, part, own, int8=self._int8, bf16=self._bf16)
            first += part.n
        return out


def _stored(part: WeightMatrix) -> StoredMatrix:
    rows, columns = part.shape
    if isinstance(part, QuantizedMatrix):
        return StoredMatrix(part.kind, part.shape, part.blocks)
    data = part.detach().contiguous()
    bits = data.view(torch.int16).numpy().view(np.uint16) if part.dtype == torch.bfloat16 else data.float().numpy()
    return StoredMatrix("bfloat16" if part.dtype == torch.bfloat16 else "float32", (rows, columns), bits)


def _supports(dtype: torch.dtype) -> bool:
    return dtype in (torch.float32, torch.bfloat16)


def candidates(activations: Activations) -> tuple[Candidate, ...]:
    """On this process's kernels, quantised weights being multiplied with these activations."""
    ops, product = NativeOps(KERNELS, activations), product_name(activations)
    experts = GatheredExperts(ops.linear, ops.pack, ops.gated_mul)
    return (
        Candidate(
            op="linear",
            name=product,
            fn=ops.linear,
            supports=_supports,
            rank=_RANK,
            pack=NativeOps.pack,
            kinds=QUANTISED_KINDS,
        ),
        Candidate(
            op="lm_head",
            name=product,
            fn=ops.lm_head,
            supports=_supports,
            rank=_RANK,
            pack=NativeOps.pack,
            rows=NativeOps.rows,
            kinds=QUANTISED_KINDS,
        ),
        Candidate(op="rms_norm", name="native", fn=ops.rms_norm, supports=_supports, rank=_RANK),
        Candidate(op="add_rms_norm", name="native", fn=ops.add_rms_norm, supports=_supports, rank=_RANK),
        Candidate(
            op="store_latents", name="torch+native", fn=StoreLatents(ops.rms_norm), supports=_supports, rank=_RANK
        ),
        Candidate(
            op="rope_and_store",
            name="native",
            fn=ops.rope_and_store,
            supports=_supports,
            rank=_RANK,
            features=frozenset({"partial_rotary"}),
        ),
        Candidate(
            op="paged_attention",
            name="native",
            fn=ops.paged_attention,
            supports=_supports,
            rank=_RANK,
            features=frozenset({"window", "softcap", "sinks"}),
        ),
        Candidate(
            op="gated_mul",
            name="native",
            fn=ops.gated_mul,
            supports=_supports,
            rank=_RANK,
            features=frozenset({"gelu_tanh", "swiglu_oai"}),
        ),
        Candidate(op="route", name="native", fn=ops.route, supports=_supports, rank=_RANK),
        Candidate(
            op="experts",
            name=product,
            fn=experts,
            supports=_supports,
            rank=_RANK,
            features=frozenset({"gelu_tanh", "swiglu_oai"}),
            pack_experts=experts.pack,
            kinds=QUANTISED_KINDS,
        ),
    )
