"""Grouped-query attention over the paged KV cache."""

from __future__ import annotations

import torch

from engine.layers.linear import Linear
from engine.layers.step_plan import StepPlan
from engine.layers.weights import Weights
from engine.ops.registry import OpTable
from engine.spec import ModelSpec


class Attention:
    """QKV projection, rotary embedding, paged attention, output projection of one layer."""

    def __init__(self, spec: ModelSpec, layer: int, ops: OpTable, weights: Weights, cos_sin: torch.Tensor) -> None:
        """`cos_sin` `[max_len, head_dim]` float32, shared by all layers."""
        self._ops = ops
        self._layer = layer
        self._heads, self._kv_heads, self._head_dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        self._cos_sin = cos_sin
        name = f"model.layers.{layer}.self_attn"
        q_rows, kv_rows = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        parts = [(f"{name}.q_proj", q_rows), (f"{name}.k_proj", kv_rows), (f"{name}.v_proj", kv_rows)]
        self.qkv = Linear.load(ops, weights, parts, spec.hidden_size, bias=spec.qkv_bias)
        self.output = Linear.load(ops, weights, [(f"{name}.o_proj", spec.hidden_size)], q_rows, bias=spec.output_bias)

    def __call__(self, x: torch.Tensor, plan: StepPlan, kv_cache: torch.Tensor) -> torch.Tensor:
        """`x` `[M, hidden]`; writes the rows' K and V at `plan.slots` before attending."""
        heads = self.qkv(x).view(len(x), -1, self._head_dim)
        last_k = self._heads + self._kv_heads
        q, k, v = heads[:, : self._heads], heads[:, self._heads : last_k], heads[:, last_k:]
        rotated = self._ops.rope_and_store(q, k, v, plan.positions, self._cos_sin, kv_cache, self._layer, plan.slots)
        attended = self._ops.paged_attention(
            rotated, kv_cache, self._layer, plan.block_tables, plan.query_starts, plan.starts, self._head_dim**-0.5
        )
        return self.output(attended.view(len(x), -1))
