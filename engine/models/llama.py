"""The Llama family (arXiv 2302.13971, 2407.21783): Llama 1 to 3, Mistral without a window, SmolLM, and, with biases on
the QKV projection, Qwen 2."""

from __future__ import annotations

from typing import cast

import torch

from engine.batch import StepBatch
from engine.layers.attention import Attention
from engine.layers.mlp import GatedMlp
from engine.layers.rope import cos_sin_table
from engine.layers.step_plan import StepPlan
from engine.layers.weights import Weights
from engine.ops.decoder import DecoderWeights, LayerWeights
from engine.ops.registry import OpTable
from engine.spec import ModelSpec
from wire.errors import ErrorCode, SpliceError
from wire.kv_layout import KVDtype, KVLayout

_KV_DTYPES = ("float32", "bfloat16")


class LlamaForCausalLM:
    """See `CausalLM`."""

    def __init__(self, spec: ModelSpec, ops: OpTable, weights: Weights, max_len: int) -> None:
        """`max_len`: positions the rotary table covers, at least the longest sequence ever served."""
        self.spec = spec
        self._ops = ops
        table = (spec.vocab_size, spec.hidden_size)
        kinds = ops.lm_head_kinds
        self._embedding = ops.pack_lm_head(weights.take_matrix("model.embed_tokens.weight", table, kinds))
        self._head = self._embedding
        if not spec.tie_embeddings:
            self._head = ops.pack_lm_head(weights.take_matrix("lm_head.weight", table, kinds))
        cos_sin = cos_sin_table(spec.rope, spec.head_dim, max_len)
        self._layers = [_DecoderLayer(spec, layer, ops, weights, cos_sin) for layer in range(spec.num_layers)]
        self._norm = weights.take("model.norm.weight", (spec.hidden_size,))
        compile_decoder = ops.compile_decoder
        self._step = None if compile_decoder is None else compile_decoder(spec, self._weights(cos_sin))

    @property
    def dtype(self) -> torch.dtype:
        return self._norm.dtype

    def kv_layout(self, block_tokens: int, kv_dtype: str) -> KVLayout:
        """See `CausalLM.kv_layout`."""
        dtype = str(self.dtype).removeprefix("torch.") if kv_dtype == "auto" else kv_dtype
        if dtype not in _KV_DTYPES:
            raise SpliceError(
                ErrorCode.BAD_SETTING,
                f"KV cache dtype {kv_dtype!r} is not supported: use auto, {' or '.join(_KV_DTYPES)}",
                param="kv_cache_dtype",
            )
        return KVLayout(
            num_layers=self.spec.num_layers,
            num_kv_heads=self.spec.num_kv_heads,
            head_dim=self.spec.head_dim,
            block_tokens=block_tokens,
            dtype=cast(KVDtype, dtype),
        )

    @torch.inference_mode()
    def forward(self, batch: StepBatch, kv_cache: torch.Tensor) -> torch.Tensor:
        """See `CausalLM.forward`."""
        plan = StepPlan.of(batch, kv_cache.shape[4])
        if self._step is not None:
            return self._step(plan, kv_cache)
        return self._op_by_op(plan, kv_cache)

    def _op_by_op(self, plan: StepPlan, kv_cache: torch.Tensor) -> torch.Tensor:
        residual = self._ops.lm_head_rows(self._embedding, plan.token_ids).to(self.dtype)
        update: torch.Tensor | None = None
        for layer in self._layers:
            update, residual = layer(update, residual, plan, kv_cache)
        assert update is not None  # noqa: S101 - a spec has at least one layer
        rows = plan.logit_rows
        if not len(rows):
            return torch.empty(0, self.spec.vocab_size)
        hidden, _ = self._ops.add_rms_norm(update[rows], residual[rows], self._norm, self.spec.rms_norm_eps)
        return self._ops.lm_head(hidden, self._head)

    def _weights(self, cos_sin: torch.Tensor) -> DecoderWeights:
        layers = [layer.weights() for layer in self._layers]
        return DecoderWeights(self._embedding, self._head, self._norm, cos_sin, layers)


class _DecoderLayer:
    """Norm, attention, norm, MLP. The residual sum is deferred to the next norm, which fuses it."""

    def __init__(self, spec: ModelSpec, layer: int, ops: OpTable, weights: Weights, cos_sin: torch.Tensor) -> None:
        name = f"model.layers.{layer}"
        self._ops = ops
        self._eps = spec.rms_norm_eps
        self._input_norm = weights.take(f"{name}.input_layernorm.weight", (spec.hidden_size,))
        self._attention = Attention(spec, layer, ops, weights, cos_sin)
        self._mlp_norm = weights.take(f"{name}.post_attention_layernorm.weight", (spec.hidden_size,))
        self._mlp = GatedMlp(spec, layer, ops, weights)

    def __call__(
        self, update: torch.Tensor | None, residual: torch.Tensor, plan: StepPlan, kv_cache: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes and returns (what the block before adds to the residual stream, the stream), both `[M, hidden]`."""
        if update is None:
            normed = self._ops.rms_norm(residual, self._input_norm, self._eps)
        else:
            normed, residual = self._ops.add_rms_norm(update, residual, self._input_norm, self._eps)
        attended = self._attention(normed, plan, kv_cache)
        normed, residual = self._ops.add_rms_norm(attended, residual, self._mlp_norm, self._eps)
        return self._mlp(normed), residual

    def weights(self) -> LayerWeights:
        return LayerWeights(
            input_norm=self._input_norm,
            qkv=self._attention.qkv.projection,
            output=self._attention.output.projection,
            mlp_norm=self._mlp_norm,
            gate_up=self._mlp.gate_up.projection,
            down=self._mlp.down.projection,
        )
