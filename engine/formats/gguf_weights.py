"""Weights of a GGUF file under their Hugging Face names, in Hugging Face's order of rows."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import torch

from engine.formats.gguf_file import GgufFile
from engine.ops.weight_matrix import QuantizedMatrix, WeightMatrix
from engine.spec import ModelSpec

_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")


class GgufWeights:
    """See `engine.layers.weights.Weights`."""

    def __init__(self, file: GgufFile, spec: ModelSpec, dtype: torch.dtype) -> None:
        self._file = file
        self._spec = spec
        self._dtype = dtype

    def take(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """See `Weights.take`."""
        tensor = self._file.tensor(gguf_name(name), shape, self._dtype)
        order = self._row_order(name, shape[0])
        return tensor if order is None else tensor[torch.from_numpy(order)]

    def take_matrix(self, name: str, shape: tuple[int, int], kinds: frozenset[str]) -> WeightMatrix:
        """See `Weights.take_matrix`."""
        stored = gguf_name(name)
        if self._dtype != torch.float32 or self._file.kind(stored) not in kinds:
            return self.take(name, shape)
        blocks = self._file.blocks(stored, shape)
        order = self._row_order(name, shape[0])
        return QuantizedMatrix(self._file.kind(stored), shape, blocks if order is None else blocks[order])

    def _row_order(self, name: str, rows: int) -> npt.NDArray[np.int64] | None:
        """llama.cpp computes the `llama` architecture's rotary embedding on neighbouring pairs, and its converter
        reorders the rows of Q and K for that; ours, as Hugging Face's, pairs the halves of a head."""
        if self._spec.architecture == "llama" and ".q_proj." in name:
            return _halves_from_pairs(rows, self._spec.num_heads)
        if self._spec.architecture == "llama" and ".k_proj." in name:
            return _halves_from_pairs(rows, self._spec.num_kv_heads)
        return None


def gguf_name(name: str) -> str:
    """GGUF's name for a Hugging Face tensor name; raises KeyError for a name no layer asks for."""
    match = _LAYER_NAME.fullmatch(name)
    if match is None:
        return _TOP[name]
    layer, module, kind = match.groups()
    return f"blk.{layer}.{_BLOCK[module]}.{kind}"


def _halves_from_pairs(rows: int, heads: int) -> npt.NDArray[np.int64]:
    """Within each head, rows (0, h, 1, h + 1, ...) back to (0, 1, ..., h, h + 1, ...), h = half the head."""
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(rows)
