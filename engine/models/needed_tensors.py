"""The tensors a model is made of, by canonical name (`engine.layers.weights`): what its files must hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from engine.spec import AttentionSpec, LatentAttentionSpec, LayerSpec, MlpSpec, ModelSpec, MoeSpec


@dataclass(frozen=True, slots=True)
class NeededTensor:
    name: str
    shape: tuple[int, ...]


_Needed = Iterator[NeededTensor]


def needed_tensors(spec: ModelSpec) -> _Needed:
    """All of them, each once."""
    yield NeededTensor("model.embed_tokens.weight", (spec.vocab_size, spec.hidden_size))
    if not spec.tie_embeddings:
        yield NeededTensor("lm_head.weight", (spec.vocab_size, spec.hidden_size))
    yield NeededTensor("model.norm.weight", (spec.hidden_size,))
    for index, layer in enumerate(spec.layers):
        yield from _layer(layer, spec.hidden_size, f"model.layers.{index}")


def _layer(layer: LayerSpec, hidden: int, name: str) -> _Needed:
    norms = ["input_layernorm", "post_attention_layernorm"]
    if layer.post_norms:
        norms += ["attention_output_norm", "mlp_output_norm"]
    for norm in norms:
        yield NeededTensor(f"{name}.{norm}.weight", (hidden,))
    match layer.attention:
        case AttentionSpec() as attention:
            yield from _attention(attention, hidden, f"{name}.self_attn")
        case LatentAttentionSpec() as attention:
            yield from _latent_attention(attention, hidden, f"{name}.self_attn")
    match layer.mlp:
        case MlpSpec() as mlp:
            yield from _mlp(mlp, hidden, f"{name}.mlp")
        case MoeSpec() as experts:
            yield from _experts(experts, hidden, f"{name}.mlp")


def _linear(name: str, rows: int, columns: int, *, bias: bool) -> _Needed:
    yield NeededTensor(f"{name}.weight", (rows, columns))
    if bias:
        yield NeededTensor(f"{name}.bias", (rows,))


def _attention(spec: AttentionSpec, hidden: int, name: str) -> _Needed:
    q_rows, kv_rows = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    for part, rows in (("q", q_rows), ("k", kv_rows), ("v", kv_rows)):
        yield from _linear(f"{name}.{part}_proj", rows, hidden, bias=spec.qkv_bias)
    yield from _linear(f"{name}.o_proj", hidden, q_rows, bias=spec.output_bias)
    if spec.qk_norm:
        for part in ("q", "k"):
            yield NeededTensor(f"{name}.{part}_norm.weight", (spec.head_dim,))
    if spec.sinks:
        yield NeededTensor(f"{name}.sinks", (spec.num_heads,))


def _latent_attention(spec: LatentAttentionSpec, hidden: int, name: str) -> _Needed:
    rank, q_rank = spec.kv_lora_rank, spec.q_lora_rank
    q_rows = spec.num_heads * (spec.qk_nope_head_dim + spec.qk_rope_head_dim)
    if q_rank is None:
        yield from _linear(f"{name}.q_proj", q_rows, hidden, bias=False)
    else:
        yield from _linear(f"{name}.q_a_proj", q_rank, hidden, bias=spec.bias)
        yield NeededTensor(f"{name}.q_a_layernorm.weight", (q_rank,))
        yield from _linear(f"{name}.q_b_proj", q_rows, q_rank, bias=False)
    yield from _linear(f"{name}.kv_a_proj_with_mqa", rank + spec.qk_rope_head_dim, hidden, bias=spec.bias)
    yield NeededTensor(f"{name}.kv_a_layernorm.weight", (rank,))
    for head in range(spec.num_heads):
        yield NeededTensor(f"{name}.k_b_proj.{head}.weight", (spec.qk_nope_head_dim, rank))
        yield NeededTensor(f"{name}.v_b_proj.{head}.weight", (spec.v_head_dim, rank))
    yield from _linear(f"{name}.o_proj", hidden, spec.num_heads * spec.v_head_dim, bias=spec.bias)


def _mlp(spec: MlpSpec, hidden: int, name: str) -> _Needed:
    for part in ("gate", "up"):
        yield from _linear(f"{name}.{part}_proj", spec.intermediate_size, hidden, bias=spec.bias)
    yield from _linear(f"{name}.down_proj", hidden, spec.intermediate_size, bias=spec.bias)


def _experts(spec: MoeSpec, hidden: int, name: str) -> _Needed:
    routing = spec.routing
    yield from _linear(f"{name}.gate", routing.num_experts, hidden, bias=routing.logit_bias)
    if routing.score_bias:
        yield NeededTensor(f"{name}.gate.e_score_correction_bias", (routing.num_experts,))
    for expert in range(routing.num_experts):
        yield from _mlp(spec.expert, hidden, f"{name}.experts.{expert}")
    if spec.shared is not None:
        yield from _mlp(spec.shared, hidden, f"{name}.shared_experts")
