"""A model's weights on their way from a file into the native layout."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.ops.decoder import (
    AttentionWeights,
    DecoderWeights,
    ExpertsWeights,
    LatentAttentionWeights,
    LayerWeights,
    MlpWeights,
    Projection,
    StackedProjection,
)
from engine.ops.native_kernels import KINDS, MixedKindsError, Packed, pack, pack_stack
from engine.rope_spec import RopeSpec
from engine.rope_table import cos_sin_table
from engine.spec import AttentionSpec, LatentAttentionSpec, MlpSpec, ModelSpec, MoeSpec
from engine.weights import FLOAT_KINDS, StoredMatrix, WeightSource

Floats = npt.NDArray[np.float32]


class Assembly:
    """Takes layer by layer, so that the file's pages can go."""

    def __init__(self, spec: ModelSpec, weights: WeightSource, max_len: int) -> None:
        """`max_len`: positions the rotary tables cover."""
        self._spec = spec
        self._weights = weights
        self._max_len = max_len
        self._tables: dict[tuple[RopeSpec | None, int], Floats] = {}

    def all(self) -> DecoderWeights:
        """Raises SpliceError for weights that are not the spec's."""
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
        layer = LayerWeights(
            input_norm=self._norm(f"{name}.input_layernorm", hidden),
            attention=self._any_attention(spec.attention, f"{name}.self_attn"),
            mlp_norm=self._norm(f"{name}.post_attention_layernorm", hidden),
            mlp=self._mlp_or_experts(spec.mlp, f"{name}.mlp"),
            attention_output_norm=self._norm(f"{name}.attention_output_norm", hidden) if spec.post_norms else None,
            mlp_output_norm=self._norm(f"{name}.mlp_output_norm", hidden) if spec.post_norms else None,
        )
        self._weights.release()
        return layer

    def _any_attention(
        self, spec: AttentionSpec | LatentAttentionSpec, name: str
    ) -> AttentionWeights | LatentAttentionWeights:
        match spec:
            case AttentionSpec():
                return self._attention(spec, name)
            case LatentAttentionSpec():
                return self._latent_attention(spec, name)

    def _attention(self, spec: AttentionSpec, name: str) -> AttentionWeights:
        hidden, q_rows, kv_rows = (
            self._spec.hidden_size,
            spec.num_heads * spec.head_dim,
            spec.num_kv_heads * spec.head_dim,
        )
        qkv = [(f"{name}.{part}_proj", rows) for part, rows in (("q", q_rows), ("k", kv_rows), ("v", kv_rows))]
        return AttentionWeights(
            cos_sin=self._cos_sin(spec.rope, spec.head_dim),
            qkv=self._projection(qkv, hidden, bias=spec.qkv_bias),
            output=self._projection([(f"{name}.o_proj", hidden)], q_rows, bias=spec.output_bias),
            q_norm=self._norm(f"{name}.q_norm", spec.head_dim) if spec.qk_norm else None,
            k_norm=self._norm(f"{name}.k_norm", spec.head_dim) if spec.qk_norm else None,
            sinks=self._vector(f"{name}.sinks", spec.num_heads) if spec.sinks else None,
        )

    def _latent_attention(self, spec: LatentAttentionSpec, name: str) -> LatentAttentionWeights:
        hidden, rank, heads, q_rank = self._spec.hidden_size, spec.kv_lora_rank, spec.num_heads, spec.q_lora_rank
        q_rows = heads * (spec.qk_nope_head_dim + spec.qk_rope_head_dim)
        q_down, q_norm, q = None, None, (f"{name}.q_proj", q_rows)
        if q_rank is not None:
            q_down = self._projection([(f"{name}.q_a_proj", q_rank)], hidden, bias=spec.bias)
            q_norm, q = self._vector(f"{name}.q_a_layernorm.weight", q_rank), (f"{name}.q_b_proj", q_rows)
        kv_down = [(f"{name}.kv_a_proj_with_mqa", rank + spec.qk_rope_head_dim)]
        return LatentAttentionWeights(
            cos_sin=self._cos_sin(spec.rope, spec.qk_rope_head_dim),
            q_down=q_down,
            q_norm=q_norm,
            q=self._projection([q], hidden if q_rank is None else q_rank, bias=False),
            kv_down=self._projection(kv_down, hidden, bias=spec.bias),
            kv_norm=self._vector(f"{name}.kv_a_layernorm.weight", rank),
            absorb=pack_stack(
                (
                    [_transposed(self._weights.take_matrix(head, (spec.qk_nope_head_dim, rank), FLOAT_KINDS))]
                    for head in (f"{name}.k_b_proj.{head}.weight" for head in range(heads))
                ),
                heads,
            ),
            expand=pack_stack(
                (
                    [self._weights.take_matrix(f"{name}.v_b_proj.{head}.weight", (spec.v_head_dim, rank), FLOAT_KINDS)]
                    for head in range(heads)
                ),
                heads,
            ),
            output=self._projection([(f"{name}.o_proj", hidden)], heads * spec.v_head_dim, bias=spec.bias),
        )

    def _mlp_or_experts(self, spec: MlpSpec | MoeSpec, name: str) -> MlpWeights | ExpertsWeights:
        match spec:
            case MlpSpec():
                return self._mlp(spec, name)
            case MoeSpec():
                return self._experts(spec, name)

    def _mlp(self, spec: MlpSpec, name: str) -> MlpWeights:
        hidden, wide = self._spec.hidden_size, spec.intermediate_size
        gate_up = [(f"{name}.gate_proj", wide), (f"{name}.up_proj", wide)]
        return MlpWeights(
            gate_up=self._projection(gate_up, hidden, bias=spec.bias),
            down=self._projection([(f"{name}.down_proj", hidden)], wide, bias=spec.bias),
        )

    def _experts(self, spec: MoeSpec, name: str) -> ExpertsWeights:
        routing, expert, hidden = spec.routing, spec.expert, self._spec.hidden_size
        router = self._weights.take_matrix(f"{name}.gate.weight", (routing.num_experts, hidden), KINDS)
        score_bias = f"{name}.gate.e_score_correction_bias"
        wide = expert.intermediate_size
        stacked = partial(self._stacked, f"{name}.experts", routing.num_experts, bias=expert.bias)
        return ExpertsWeights(
            router=Projection(
                pack(router), self._vector(f"{name}.gate.bias", routing.num_experts) if routing.logit_bias else None
            ),
            score_bias=self._vector(score_bias, routing.num_experts) if routing.score_bias else None,
            gate_up=stacked([("gate_proj", wide), ("up_proj", wide)], hidden),
            down=stacked([("down_proj", hidden)], wide),
            shared=None if spec.shared is None else self._mlp(spec.shared, f"{name}.shared_experts"),
        )

    def _stacked(
        self, name: str, count: int, parts: list[tuple[str, int]], columns: int, *, bias: bool
    ) -> StackedProjection:
        """`parts` are (module name under an expert's, rows), stacked in that order."""
        biases = [
            np.concatenate([self._vector(f"{name}.{expert}.{part}.bias", rows) for part, rows in parts])
            for expert in range(count if bias else 0)
        ]
        try:
            packed = self._stack(name, count, parts, columns, KINDS)
        except MixedKindsError:
            packed = self._stack(name, count, parts, columns, frozenset())
        return StackedProjection(packed, np.stack(biases) if biases else None)

    def _stack(
        self, name: str, count: int, parts: list[tuple[str, int]], columns: int, kinds: frozenset[str]
    ) -> Packed:
        def matrices() -> Iterator[list[StoredMatrix]]:
            for expert in range(count):
                yield [
                    self._weights.take_matrix(f"{name}.{expert}.{part}.weight", (rows, columns), kinds)
                    for part, rows in parts
                ]

        return pack_stack(matrices(), count)

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

    def _cos_sin(self, rope: RopeSpec | None, head_dim: int) -> Floats:
        key = (rope, head_dim)
        if key not in self._tables:
            self._tables[key] = cos_sin_table(rope, head_dim, self._max_len)
        return self._tables[key]


def _transposed(matrix: StoredMatrix) -> StoredMatrix:
    rows, columns = matrix.shape
    return StoredMatrix(matrix.kind, (columns, rows), np.ascontiguousarray(matrix.data.T))
