"""What DeepSeek-V2 and V3 have in common: latent attention, experts beside shared ones after some dense layers."""

from __future__ import annotations

import re

import numpy as np

from engine.formats.fields import Fields
from engine.formats.hf_config import layers_in_config, mlp_from_config
from engine.formats.hf_rope import rope_from_config, yarn_mscale
from engine.formats.stored import RowPick, Stored, row_range
from engine.rope_spec import YarnRopeScaling
from engine.spec import LatentAttentionSpec, LayerSpec, MlpSpec, ModelSpec, MoeSpec, RoutingSpec

UP_PROJECTION = re.compile(r"model\.layers\.(\d+)\.self_attn\.([kv])_b_proj\.(\d+)\.weight")
"""Layer, `k` or `v`, and head of the canonical name of one head's part of the up-projection."""
_TURNED = (".q_proj.", ".q_b_proj.", ".kv_a_proj_with_mqa.")


def attention_from_config(config: Fields) -> LatentAttentionSpec:
    """Latent attention. Long contexts sharpen the scores by the square of yarn's factor for all dimensions."""
    nope, turning = config.integer("qk_nope_head_dim"), config.integer("qk_rope_head_dim")
    rope = rope_from_config(config, turning)
    parameters = config.section("rope_parameters" if config.values.get("rope_parameters") else "rope_scaling")
    mscale = parameters.number_or("mscale_all_dim", 0.0)
    sharper = yarn_mscale(rope.scaling.factor, mscale) if mscale and isinstance(rope.scaling, YarnRopeScaling) else 1.0
    return LatentAttentionSpec(
        num_heads=config.integer("num_attention_heads"),
        q_lora_rank=config.integer_or("q_lora_rank", None),
        kv_lora_rank=config.integer("kv_lora_rank"),
        qk_nope_head_dim=nope,
        qk_rope_head_dim=turning,
        v_head_dim=config.integer("v_head_dim"),
        rope=rope,
        scale=max(nope + turning, 1) ** -0.5 * sharper * sharper,
        bias=config.boolean_or("attention_bias", False),
        files_pair_neighbours=config.boolean_or("rope_interleave", True),
    )


def layers_from_config(config: Fields, routing: RoutingSpec) -> tuple[LayerSpec, ...]:
    """The first layers dense, experts in all others."""
    if config.integer_or("moe_layer_freq", 1) != 1:
        raise config.wrong("moe_layer_freq", "1: experts in every layer after the dense ones")
    attention = attention_from_config(config)
    dense = mlp_from_config(config, bias=config.boolean_or("mlp_bias", False))
    width, num_shared = config.integer("moe_intermediate_size"), config.integer_or("n_shared_experts", None)
    # All shared experts together are one wider MLP.
    shared = MlpSpec(width * num_shared, dense.activation, dense.bias) if num_shared else None
    experts = MoeSpec(routing, MlpSpec(width, dense.activation), shared)
    num_dense = config.integer("first_k_dense_replace")
    return tuple(
        LayerSpec(attention, dense if layer < num_dense else experts) for layer in range(layers_in_config(config))
    )


def hf_tensor(spec: ModelSpec, name: str) -> Stored:
    """See `Architecture.hf_tensor`."""
    attention = spec.layers[0].attention
    if not isinstance(attention, LatentAttentionSpec):
        return Stored(name)
    up = UP_PROJECTION.fullmatch(name)
    if up is not None:
        return up_projection(attention, f"model.layers.{up[1]}.self_attn.kv_b_proj.weight", up[2], int(up[3]))
    return Stored(name, halves_of_turned_rows(attention, name))


def up_projection(attention: LatentAttentionSpec, stored: str, part: str, head: int) -> Stored:
    """Rows of one head's unrotated key (`part` k) or value (v) in `kv_b_proj`."""
    nope, value = attention.qk_nope_head_dim, attention.v_head_dim
    first = head * (nope + value)
    total = attention.num_heads * (nope + value)
    return row_range(stored, first, nope, total) if part == "k" else row_range(stored, first + nope, value, total)


def halves_of_turned_rows(attention: LatentAttentionSpec, name: str) -> RowPick | None:
    """Where files pair neighbours: the rows of a projection with those that turn brought into halves."""
    part = next((part for part in _TURNED if part in name), None)
    if part is None or not attention.files_pair_neighbours:
        return None
    heads = 1 if part == ".kv_a_proj_with_mqa." else attention.num_heads
    still = attention.kv_lora_rank if part == ".kv_a_proj_with_mqa." else attention.qk_nope_head_dim
    turning = attention.qk_rope_head_dim
    rows = np.arange(heads * (still + turning)).reshape(heads, still + turning)
    pairs = rows[:, still:].reshape(heads, turning // 2, 2).swapaxes(1, 2).reshape(heads, turning)
    return RowPick(rows.size, np.concatenate((rows[:, :still], pairs), axis=1).ravel())
