"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434) over a paged cache of latents."""

from __future__ import annotations

import torch

from engine.layers.linear import Linear
from engine.layers.norm import Norm
from engine.layers.weights import Weights
from engine.ops.latent_norm import LatentNorm
from engine.ops.registry import OpTable
from engine.ops.signatures import LinearRows, RowsForm
from engine.spec import LatentAttentionSpec, ModelSpec
from engine.steps.step_plan import StepPlan


class LatentAttention:
    """Down-projections, norms, rotation of the decoupled part, attention over latents and output projection."""

    def __init__(
        self,
        model: ModelSpec,
        spec: LatentAttentionSpec,
        layer: int,
        ops: OpTable,
        weights: Weights,
        cos_sin: torch.Tensor,
    ) -> None:
        """`cos_sin` `[max_len, qk_rope_head_dim]` float32, shared by all layers."""
        self._spec, self._layer, self._ops, self._cos_sin = spec, layer, ops, cos_sin
        name, hidden = f"model.layers.{layer}.self_attn", model.hidden_size
        q_rows = spec.num_heads * (spec.qk_nope_head_dim + spec.qk_rope_head_dim)
        self._q_down: Linear | None = None
        if spec.q_lora_rank is None:
            self._q = Linear.load(ops, weights, [(f"{name}.q_proj", q_rows)], hidden, bias=False)
        else:
            rank = spec.q_lora_rank
            self._q_down = Linear.load(ops, weights, [(f"{name}.q_a_proj", rank)], hidden, bias=spec.bias)
            q_norm = weights.take(f"{name}.q_a_layernorm.weight", (rank,))
            self._q = Linear.load(ops, weights, [(f"{name}.q_b_proj", q_rows)], rank, bias=False)
            self._q_norm = Norm(ops, q_norm, spec.norm_eps, self._q.form)
        cached = [(f"{name}.kv_a_proj_with_mqa", spec.kv_lora_rank + spec.qk_rope_head_dim)]
        self._kv_down = Linear.load(ops, weights, cached, hidden, bias=spec.bias)
        self._norm = LatentNorm(weights.take(f"{name}.kv_a_layernorm.weight", (spec.kv_lora_rank,)), spec.norm_eps)
        self._up = _take_up(spec, name, weights)
        values = spec.num_heads * spec.v_head_dim
        self._output = Linear.load(ops, weights, [(f"{name}.o_proj", hidden)], values, bias=spec.bias)

    @property
    def form(self) -> RowsForm | None:
        """See `Linear.form`: where both products of a row take the same."""
        queries = self._q if self._q_down is None else self._q_down
        return queries.form if queries.form == self._kv_down.form else None

    @property
    def pushes(self) -> bool:
        """Whether `plan.peers` may be given."""
        return self._ops.push_latents is not None

    def __call__(self, x: LinearRows, plan: StepPlan, kv_cache: torch.Tensor) -> torch.Tensor:
        """`x` `[M, hidden]`; writes the rows' latents and rotated keys at `plan.slots` before attending."""
        spec, ops, layer = self._spec, self._ops, self._layer
        q = self._queries(x)
        down = self._kv_down(x)
        latent, key = down[:, : spec.kv_lora_rank], down[:, spec.kv_lora_rank :]
        where = (plan.positions, self._cos_sin, kv_cache, layer, plan.slots)
        if plan.peers is None:
            q = ops.store_latents(q, latent, key, *where, self._norm)
        else:
            assert ops.push_latents is not None  # noqa: S101 - see `LatentAttention.pushes`
            q = ops.push_latents(q, latent, key, *where, plan.peers, self._norm)
        tables, ends = plan.block_tables, plan.prompt_ends
        attended = ops.latent_attention(
            q, kv_cache, layer, tables, plan.query_starts, plan.starts, ends, self._up, spec.scale, bounds=plan.bounds
        )
        return self._output(attended.view(len(x), -1))

    def _queries(self, x: LinearRows) -> torch.Tensor:
        """`[M, num_heads, nope + rope]`, not rotated yet."""
        if self._q_down is not None:
            x = self._q_norm(self._q_down(x))
        return self._q(x).view(len(x), self._spec.num_heads, -1)


def _take_up(spec: LatentAttentionSpec, name: str, weights: Weights) -> torch.Tensor:
    """`[num_heads, nope + v, rank]`: how a latent becomes each head's unrotated key and its value."""
    rank = spec.kv_lora_rank
    heads = []
    for head in range(spec.num_heads):
        heads.append(weights.take(f"{name}.k_b_proj.{head}.weight", (spec.qk_nope_head_dim, rank)))
        heads.append(weights.take(f"{name}.v_b_proj.{head}.weight", (spec.v_head_dim, rank)))
    return torch.cat(heads).view(spec.num_heads, -1, rank)
