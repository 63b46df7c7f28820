"""Grouped-query attention over the paged KV cache."""

from __future__ import annotations

import torch

from engine.layers.linear import Linear
from engine.layers.norm import take_norm
from engine.layers.weights import Weights
from engine.ops.head_norms import HeadNorms
from engine.ops.registry import OpTable
from engine.ops.signatures import LinearRows, RowsForm
from engine.spec import AttentionSpec, ModelSpec
from engine.steps.step_plan import StepPlan


class Attention:
    """QKV projection, norms of heads, rotary embedding, paged attention and output projection of one layer."""

    def __init__(
        self, model: ModelSpec, spec: AttentionSpec, layer: int, ops: OpTable, weights: Weights, cos_sin: torch.Tensor
    ) -> None:
        """`cos_sin` `[max_len, rotary_dim]` float32, shared by all layers of one rope."""
        self._ops = ops
        self._layer = layer
        self._spec = spec
        self.cos_sin = cos_sin
        name = f"model.layers.{layer}.self_attn"
        q_rows, kv_rows = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        parts = [(f"{name}.q_proj", q_rows), (f"{name}.k_proj", kv_rows), (f"{name}.v_proj", kv_rows)]
        hidden = model.hidden_size
        self.qkv = Linear.load(ops, weights, parts, hidden, bias=spec.qkv_bias)
        self.output = Linear.load(ops, weights, [(f"{name}.o_proj", hidden)], q_rows, bias=spec.output_bias)
        self._norms: HeadNorms | None = None
        if spec.qk_norm:
            q_norm, k_norm = (
                take_norm(weights, f"{name}.{part}_norm.weight", spec.head_dim, model.norm_offset) for part in "qk"
            )
            self._norms = HeadNorms(q_norm, k_norm, model.rms_norm_eps)
        self.sinks = weights.take(f"{name}.sinks", (spec.num_heads,)).float() if spec.sinks else None

    @property
    def form(self) -> RowsForm | None:
        """See `Linear.form`."""
        return self.qkv.form

    @property
    def pushes(self) -> bool:
        """Whether `plan.peers` may be given."""
        return self._ops.rope_and_push is not None

    def __call__(self, x: LinearRows, plan: StepPlan, kv_cache: torch.Tensor) -> torch.Tensor:
        """`x` `[M, hidden]`; writes the rows' K and V at `plan.slots` before attending."""
        spec, ops = self._spec, self._ops
        heads = self.qkv(x).view(len(x), -1, spec.head_dim)
        last_k = spec.num_heads + spec.num_kv_heads
        q, k, v = heads[:, : spec.num_heads], heads[:, spec.num_heads : last_k], heads[:, last_k:]
        where = (plan.positions, self.cos_sin, kv_cache, self._layer, plan.slots)
        if plan.peers is None:
            rotated = ops.rope_and_store(q, k, v, *where, self._norms)
        else:
            assert ops.rope_and_push is not None  # noqa: S101 - see `Attention.pushes`
            rotated = ops.rope_and_push(q, k, v, *where, plan.peers, self._norms)
        attended = ops.paged_attention(
            rotated,
            kv_cache,
            self._layer,
            plan.block_tables,
            plan.query_starts,
            plan.starts,
            spec.scale,
            window=spec.window,
            softcap=spec.softcap,
            sinks=self.sinks,
            bounds=plan.bounds,
        )
        return self.output(attended.view(len(x), -1))
