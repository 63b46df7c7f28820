"""The decoder that every architecture is an instance of: what differs between them is in the `ModelSpec`."""

from __future__ import annotations

import logging
from typing import cast

import torch

from engine.batch import StepBatch
from engine.layers.block import Block
from engine.layers.norm import with_offset
from engine.layers.rope import RopeTables
from engine.layers.weights import Weights
from engine.ops.decoder import DecoderStep, DecoderWeights
from engine.ops.registry import OpTable
from engine.spec import ModelSpec
from engine.step_plan import StepPlan
from wire.errors import ErrorCode, SpliceError
from wire.kv_layout import KVDtype, KVLayout

_log = logging.getLogger(__name__)
_KV_DTYPES = ("float32", "bfloat16")


class Decoder:
    """See `CausalLM`."""

    def __init__(self, spec: ModelSpec, ops: OpTable, weights: Weights, max_len: int) -> None:
        """`max_len`: positions the rotary tables cover, at least the longest sequence ever served.

        `ops` are chosen for `features_of(spec)`. Raises SpliceError for weights that are not the spec's.
        """
        self.spec = spec
        self._ops = ops
        table = (spec.vocab_size, spec.hidden_size)
        kinds = ops.lm_head_kinds
        self._embedding = ops.pack_lm_head(weights.take_matrix("model.embed_tokens.weight", table, kinds))
        self._head = self._embedding
        if not spec.tie_embeddings:
            self._head = ops.pack_lm_head(weights.take_matrix("lm_head.weight", table, kinds))
        tables = RopeTables(max_len)
        self._blocks = [Block(spec, layer, ops, weights, tables) for layer in range(spec.num_layers)]
        norm = weights.take("model.norm.weight", (spec.hidden_size,))
        self.dtype = norm.dtype
        self._norm = with_offset(norm, spec.norm_offset)
        self._step = self._compiled()

    def kv_layout(self, block_tokens: int, kv_dtype: str) -> KVLayout:
        """See `CausalLM.kv_layout`."""
        dtype = str(self.dtype).removeprefix("torch.") if kv_dtype == "auto" else kv_dtype
        if dtype not in _KV_DTYPES:
            raise SpliceError(
                ErrorCode.BAD_SETTING,
                f"KV cache dtype {kv_dtype!r} is not supported: use auto, {' or '.join(_KV_DTYPES)}",
                param="kv_cache_dtype",
            )
        _, heads, head_dim = self.spec.kv_shape
        return KVLayout(
            num_layers=self.spec.num_layers,
            num_kv_heads=heads,
            head_dim=head_dim,
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
        spec = self.spec
        residual = self._ops.lm_head_rows(self._embedding, plan.token_ids).to(self.dtype)
        if spec.embedding_scale != 1.0:
            residual = residual * torch.tensor(spec.embedding_scale, dtype=self.dtype)
        update: torch.Tensor | None = None
        for block in self._blocks:
            update, residual = block(update, residual, plan, kv_cache)
        assert update is not None  # noqa: S101 - a spec has at least one layer
        rows = plan.logit_rows
        if not len(rows):
            return torch.empty(0, spec.vocab_size)
        hidden, _ = self._ops.add_rms_norm(update[rows], residual[rows], self._norm, spec.rms_norm_eps)
        logits = self._ops.lm_head(hidden, self._head)
        return logits if spec.logit_softcap is None else _capped(logits, spec.logit_softcap)

    def _compiled(self) -> DecoderStep | None:
        compiler = self._ops.compile_decoder
        if compiler is None:
            _log.info("%s is computed operation by operation: not all of them are native", self.spec.architecture)
            return None
        obstacle = compiler.obstacle(self.spec)
        if obstacle is not None:
            _log.info("%s is computed operation by operation, because %s", self.spec.architecture, obstacle)
            return None
        layers = [block.weights() for block in self._blocks]
        return compiler.compile(self.spec, DecoderWeights(self._embedding, self._head, self._norm, layers))


def _capped(logits: torch.Tensor, cap: float) -> torch.Tensor:
    """Row by row: torch takes elements at the end of a loop another way, so its bits depend on where a row begins."""
    for row in logits:
        row.div_(cap).tanh_().mul_(cap)
    return logits
