"""A decoder whose steps are one native call each; it needs no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from engine.batch import StepBatch
from engine.kv_cache import KVCache
from engine.models.kv_layouts import NATIVE_KV_DTYPES, decoder_kv_layout
from engine.ops.decoder import DecoderWeights, LayerWeights, Projection
from engine.ops.names import Activations
from engine.ops.native_decoder import NativeDecoderCompiler
from engine.ops.native_kernels import KERNELS, KINDS, pack
from engine.rope_table import cos_sin_table
from engine.spec import AttentionSpec, MlpSpec, ModelSpec
from engine.step_arrays import StepArrays
from engine.weights import WeightSource
from wire.kv_layout import KVLayout

Floats = npt.NDArray[np.float32]
_COMPILERS: dict[Activations, NativeDecoderCompiler] = {
    "int8": NativeDecoderCompiler(KERNELS, "int8"),
    "float32": NativeDecoderCompiler(KERNELS, "float32"),
}


def obstacle(spec: ModelSpec) -> str | None:
    """Why no native step computes this model, in words; None when one does."""
    return _COMPILERS["float32"].obstacle(spec)


class NativeDecoder:
    """See `CausalLM`. Weights stay in the precision they came in; activations are float32, on their way into quantised
    weights perhaps int8."""

    def __init__(self, spec: ModelSpec, weights: WeightSource, max_len: int, activations: Activations) -> None:
        """For specs without an `obstacle`. `max_len`: positions the rotary table covers, at least the longest sequence
        ever served. Raises SpliceError for weights that are not the spec's."""
        self.spec = spec
        self._step = _COMPILERS[activations].compile(spec, _Assembly(spec, weights, max_len).all())
        self._block_tokens = 0
        self._kv_cache: npt.NDArray[Any] | None = None

    def kv_layout(self, block_tokens: int, kv_dtype: str) -> KVLayout:
        """See `CausalLM.kv_layout`."""
        return decoder_kv_layout(self.spec, "float32", block_tokens, kv_dtype, NATIVE_KV_DTYPES)

    def bind_kv_cache(self, kv_cache: KVCache) -> None:
        """See `CausalLM.bind_kv_cache`."""
        self._block_tokens = kv_cache.layout.block_tokens
        self._kv_cache = kv_cache.elements()

    def forward(self, batch: StepBatch) -> Floats:
        """See `CausalLM.forward`."""
        assert self._kv_cache is not None  # noqa: S101 - the engine binds it before the first step
        return self._step(StepArrays.of(batch, self._block_tokens), self._kv_cache)


class _Assembly:
    """Takes a model's weights from a file into the native layout, layer by layer, so that the file's pages can go."""

    def __init__(self, spec: ModelSpec, weights: WeightSource, max_len: int) -> None:
        self._spec = spec
        self._weights = weights
        self._max_len = max_len
        self._tables: dict[Any, Floats] = {}

    def all(self) -> DecoderWeights:
        spec = self._spec
        embedding = self._table("model.embed_tokens")
        head = embedding if spec.tie_embeddings else self._table("lm_head")
        layers = [self._layer(index) for index in range(spec.num_layers)]
        return DecoderWeights(embedding, head, self._norm("model.norm", spec.hidden_size), layers)

    def _table(self, name: str) -> Any:
        shape = (self._spec.vocab_size, self._spec.hidden_size)
        packed = pack(self._weights.take_matrix(f"{name}.weight", shape, KINDS))
        self._weights.release()
        return packed

    def _layer(self, index: int) -> LayerWeights:
        spec, hidden, name = self._spec.layers[index], self._spec.hidden_size, f"model.layers.{index}"
        attention, mlp = spec.attention, spec.mlp
        if not isinstance(attention, AttentionSpec) or not isinstance(mlp, MlpSpec):
            raise TypeError(f"layer {index} is no layer of a native decoder")
        q_rows, kv_rows = attention.num_heads * attention.head_dim, attention.num_kv_heads * attention.head_dim
        wide = mlp.intermediate_size
        qkv = [
            (f"{name}.self_attn.{part}_proj", rows) for part, rows in (("q", q_rows), ("k", kv_rows), ("v", kv_rows))
        ]
        gate_up = [(f"{name}.mlp.gate_proj", wide), (f"{name}.mlp.up_proj", wide)]
        layer = LayerWeights(
            cos_sin=self._cos_sin(attention),
            input_norm=self._norm(f"{name}.input_layernorm", hidden),
            qkv=self._projection(qkv, hidden, bias=attention.qkv_bias),
            output=self._projection([(f"{name}.self_attn.o_proj", hidden)], q_rows, bias=attention.output_bias),
            mlp_norm=self._norm(f"{name}.post_attention_layernorm", hidden),
            gate_up=self._projection(gate_up, hidden, bias=mlp.bias),
            down=self._projection([(f"{name}.mlp.down_proj", hidden)], wide, bias=mlp.bias),
            q_norm=self._norm(f"{name}.self_attn.q_norm", attention.head_dim) if attention.qk_norm else None,
            k_norm=self._norm(f"{name}.self_attn.k_norm", attention.head_dim) if attention.qk_norm else None,
            sinks=self._vector(f"{name}.self_attn.sinks", attention.num_heads) if attention.sinks else None,
            attention_output_norm=self._norm(f"{name}.attention_output_norm", hidden) if spec.post_norms else None,
            mlp_output_norm=self._norm(f"{name}.mlp_output_norm", hidden) if spec.post_norms else None,
        )
        self._weights.release()
        return layer

    def _projection(self, parts: list[tuple[str, int]], columns: int, *, bias: bool) -> Projection:
        """`parts` are (module name, rows), stacked in that order."""
        matrices = [self._weights.take_matrix(f"{name}.weight", (rows, columns), KINDS) for name, rows in parts]
        biases = [self._vector(f"{name}.bias", rows) for name, rows in parts] if bias else []
        return Projection(pack(*matrices), np.concatenate(biases) if biases else None)

    def _norm(self, name: str, size: int) -> Floats:
        return self._vector(f"{name}.weight", size) + np.float32(self._spec.norm_offset)

    def _vector(self, name: str, size: int) -> Floats:
        """A copy: the file may be replaced under its mapping."""
        return np.array(self._weights.take(name, (size,)))

    def _cos_sin(self, attention: AttentionSpec) -> Floats:
        key = (attention.rope, attention.head_dim)
        if key not in self._tables:
            self._tables[key] = cos_sin_table(attention.rope, attention.head_dim, self._max_len)
        return self._tables[key]
