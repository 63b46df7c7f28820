"""The decoder that every architecture is an instance of, operation by operation in torch: what differs between
architectures is in the `ModelSpec`. Where a whole step is native, `native_decoder` takes its place."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from engine.blocks.kv_cache import KVCache, KVMemory
from engine.layers.block import Block
from engine.layers.norm import with_offset
from engine.layers.rope import RopeTables
from engine.layers.weights import Weights
from engine.models.kv_layouts import decoder_kv_layout
from engine.ops.registry import OpTable
from engine.spec import LatentAttentionSpec, ModelSpec
from engine.steps.batch import StepBatch
from engine.steps.step_plan import StepPlan
from wire.kv_layout import KVDtype, KVLayout


class Decoder:
    """See `CausalLM`."""

    def __init__(
        self,
        spec: ModelSpec,
        ops: OpTable,
        weights: Weights,
        max_len: int,
        kv_dtype: KVDtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        """`max_len`: positions the rotary tables cover, at least the longest sequence ever served. `kv_dtype`: what
        `auto` means to `kv_layout`, by default the dtype of activations. `device`: where `weights` come to lie, by
        default the CPU.

        `ops` are chosen for `features_of(spec)`. Raises SpliceError for weights that are not the spec's.
        """
        self.spec = spec
        self.max_len = max_len
        self._ops = ops
        table = (spec.vocab_size, spec.hidden_size)
        kinds = ops.lm_head_kinds
        self._embedding = ops.pack_lm_head(weights.take_matrix("model.embed_tokens.weight", table, kinds))
        self._head = self._embedding
        if not spec.tie_embeddings:
            self._head = ops.pack_lm_head(weights.take_matrix("lm_head.weight", table, kinds))
        tables = RopeTables(max_len, device)
        self._blocks = [Block(spec, layer, ops, weights, tables) for layer in range(spec.num_layers)]
        norm = weights.take("model.norm.weight", (spec.hidden_size,))
        self.dtype = norm.dtype
        self._kv_dtype = kv_dtype or str(norm.dtype).removeprefix("torch.")
        self._norm = with_offset(norm, spec.norm_offset)
        self._block_tokens = 0
        self._kv_cache: torch.Tensor | None = None

    @property
    def answer_is_apart(self) -> bool:
        """See `CausalLM.answer_is_apart` and `engine.ops.latent_attention`."""
        return any(isinstance(layer.attention, LatentAttentionSpec) for layer in self.spec.layers)

    @property
    def runs_ahead(self) -> bool:
        """See `CausalLM.runs_ahead`."""
        return False

    @property
    def pushes(self) -> bool:
        """Whether a plan for `run` may have `peers`."""
        return all(block.pushes for block in self._blocks)

    def kv_layout(self, block_tokens: int, kv_dtype: str) -> KVLayout:
        """See `CausalLM.kv_layout`."""
        return decoder_kv_layout(self.spec, self._kv_dtype, block_tokens, kv_dtype)

    def bind_kv_cache(self, kv_cache: KVMemory) -> None:
        """See `CausalLM.bind_kv_cache`."""
        if not isinstance(kv_cache, KVCache):
            raise TypeError(f"the KV cache is a {type(kv_cache).__name__}, expected one in memory of the CPU")
        layout = kv_cache.layout
        self._block_tokens = layout.block_tokens
        if layout.is_scaled:
            self._kv_cache = torch.from_numpy(kv_cache.elements())
            return
        blocks = torch.from_numpy(kv_cache.blocks).view(getattr(torch, layout.dtype))
        self._kv_cache = blocks.view(len(kv_cache), *layout.block_shape)

    @torch.inference_mode()
    def forward(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        """See `CausalLM.forward`."""
        assert self._kv_cache is not None  # noqa: S101 - the engine binds it before the first step
        plan = StepPlan.of(batch, self._block_tokens)
        logits: npt.NDArray[np.float32] = self.run(plan, self._kv_cache).numpy()
        return logits

    def run(self, plan: StepPlan, kv_cache: torch.Tensor) -> torch.Tensor:
        """Logits `[len(plan.logit_rows), vocab]` float32; `kv_cache` `[num_blocks, *layout.block_shape]`, or scaled.

        Everything on the device of the weights. What is launched depends on shapes and `plan.bounds` alone.
        """
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
            return residual.new_empty(0, spec.vocab_size, dtype=torch.float32)
        hidden, _ = self._ops.add_rms_norm(update[rows], residual[rows], self._norm, spec.rms_norm_eps)
        logits = self._ops.lm_head(hidden, self._head)
        return logits if spec.logit_softcap is None else _capped(logits, spec.logit_softcap)


def _capped(logits: torch.Tensor, cap: float) -> torch.Tensor:
    """Row by row: torch takes elements at the end of a loop another way, so its bits depend on where a row begins. On a
    GPU they do not."""
    for row in logits if logits.device.type == "cpu" else (logits,):
        row.div_(cap).tanh_().mul_(cap)
    return logits
