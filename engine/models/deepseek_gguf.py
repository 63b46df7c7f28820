"""GGUF files of DeepSeek-V2 and V3, which both call themselves `deepseek2`.

Files that name no groups of experts are computed without them, as the programs that wrote them did.
"""

from __future__ import annotations

import math
from dataclasses import replace

from engine.formats.expert_names import moe_gguf_tensor
from engine.formats.gguf_file import GgufFile
from engine.formats.gguf_rope import rope_from_gguf
from engine.formats.gguf_spec import layers_in_gguf, model_from_gguf
from engine.formats.stored import Member, Stored
from engine.models.deepseek import UP_PROJECTION, halves_of_turned_rows, up_projection
from engine.rope_spec import YarnRopeScaling
from engine.spec import LatentAttentionSpec, LayerSpec, MlpSpec, ModelSpec, MoeSpec, RoutingSpec

NAME = "deepseek2"
_SOFTMAX, _SIGMOID = 1, 2


def spec_from_gguf(file: GgufFile) -> ModelSpec:
    """See `Architecture.spec_from_gguf`."""
    fields = file.fields
    attention, routing = _attention(file), _routing(file)
    width, num_shared = (
        fields.integer(f"{NAME}.expert_feed_forward_length"),
        fields.integer(f"{NAME}.expert_shared_count"),
    )
    experts = MoeSpec(routing, MlpSpec(width), MlpSpec(width * num_shared) if num_shared else None)
    dense, num_dense = (
        MlpSpec(fields.integer(f"{NAME}.feed_forward_length")),
        fields.integer(f"{NAME}.leading_dense_block_count"),
    )
    layers = tuple(
        LayerSpec(attention, dense if layer < num_dense else experts) for layer in range(layers_in_gguf(file, NAME))
    )
    return model_from_gguf(file, NAME, "deepseek_v3" if routing.scores == "sigmoid" else "deepseek_v2", layers)


def gguf_tensor(spec: ModelSpec, name: str) -> Stored:
    """See `Architecture.gguf_tensor`."""
    attention, up = spec.layers[0].attention, UP_PROJECTION.fullmatch(name)
    if not isinstance(attention, LatentAttentionSpec):
        return moe_gguf_tensor(spec, name)
    if up is None:
        stored = moe_gguf_tensor(spec, name)
        rows = halves_of_turned_rows(attention, name)
        return stored if rows is None else replace(stored, pick=rows)
    layer, part, head = up[1], up[2], int(up[3])
    if not attention.files_split_up_projection:
        return up_projection(attention, f"blk.{layer}.attn_kv_b.weight", part, head)
    member = Member(head, attention.num_heads)
    return Stored(f"blk.{layer}.attn_{part}_b.weight", member=member, is_transposed=part == "k")


def _attention(file: GgufFile) -> LatentAttentionSpec:
    """Newer files give lengths of what the cache holds, and those of heads under keys of their own."""
    fields, name = file.fields, f"{NAME}.attention"
    turning = fields.integer(f"{NAME}.rope.dimension_count")
    key = fields.integer(
        f"{name}.key_length_mla" if f"{name}.key_length_mla" in fields.values else f"{name}.key_length"
    )
    mla_value = f"{name}.value_length_mla"
    value = fields.integer(mla_value if mla_value in fields.values else f"{name}.value_length")
    rope = rope_from_gguf(file, NAME, turning)
    sharper = 1.0
    if isinstance(rope.scaling, YarnRopeScaling):
        # Of yarn's two factors one is for cosines and sines, and of models that have these files it is 1.
        logarithm = fields.number_or(f"{NAME}.rope.scaling.yarn_log_multiplier", 0.0)
        sharper = 1.0 + logarithm * math.log(max(rope.scaling.factor, 1.0))
        rope = replace(rope, scaling=replace(rope.scaling, attention_factor=1.0))
    return LatentAttentionSpec(
        num_heads=fields.integer(f"{name}.head_count"),
        q_lora_rank=fields.integer_or(f"{name}.q_lora_rank", None) or None,
        kv_lora_rank=fields.integer(f"{name}.kv_lora_rank"),
        qk_nope_head_dim=key - turning,
        qk_rope_head_dim=turning,
        v_head_dim=value,
        rope=rope,
        scale=max(key, 1) ** -0.5 * sharper * sharper,
        files_split_up_projection="blk.0.attn_k_b.weight" in file,
    )


def _routing(file: GgufFile) -> RoutingSpec:
    fields = file.fields
    function = fields.integer_or(f"{NAME}.expert_gating_func", _SOFTMAX)
    if function not in (_SOFTMAX, _SIGMOID):
        raise fields.wrong(f"{NAME}.expert_gating_func", f"{_SOFTMAX}, softmax, or {_SIGMOID}, sigmoid")
    num_groups = fields.integer_or(f"{NAME}.expert_group_count", 1)
    is_sigmoid = function == _SIGMOID
    return RoutingSpec(
        num_experts=fields.integer(f"{NAME}.expert_count"),
        top_k=fields.integer(f"{NAME}.expert_used_count"),
        scores="sigmoid" if is_sigmoid else "softmax",
        normalise=fields.boolean_or(f"{NAME}.expert_weights_norm", False),
        scale=fields.number_or(f"{NAME}.expert_weights_scale", 1.0),
        num_groups=num_groups,
        top_groups=fields.integer_or(f"{NAME}.expert_group_used_count", num_groups),
        group_score="top2_sum" if is_sigmoid else "max",
        score_bias=is_sigmoid,
    )
