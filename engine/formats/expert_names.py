"""Canonical names of one expert's tensors, taken apart."""

from __future__ import annotations

import re
from dataclasses import dataclass

from engine.formats.gguf_names import gguf_name
from engine.formats.stored import Member, Stored
from engine.spec import ModelSpec, MoeSpec

_EXPERT = re.compile(r"(model\.layers\.(\d+))\.mlp\.experts\.(\d+)\.(gate|up|down)_proj\.(weight|bias)")
_SCORE_BIAS = re.compile(r"model\.layers\.(\d+)\.mlp\.gate\.e_score_correction_bias")
_SINKS = re.compile(r"model\.layers\.(\d+)\.self_attn\.sinks")


@dataclass(frozen=True, slots=True)
class ExpertName:
    """What `model.layers.LAYER.mlp.experts.INDEX.PART_proj.KIND` says."""

    prefix: str
    """`model.layers.LAYER`."""
    layer: int
    index: int
    part: str
    """`gate`, `up` or `down`."""
    kind: str
    """`weight` or `bias`."""

    @classmethod
    def of(cls, name: str) -> ExpertName | None:
        """None for every other name."""
        match = _EXPERT.fullmatch(name)
        if match is None:
            return None
        prefix, layer, index, part, kind = match.groups()
        return cls(prefix, int(layer), int(index), part, kind)

    def member(self, spec: ModelSpec) -> Member:
        """This expert among those of its layer."""
        mlp = spec.layers[self.layer].mlp
        return Member(self.index, mlp.routing.num_experts if isinstance(mlp, MoeSpec) else 1)


def moe_gguf_tensor(spec: ModelSpec, name: str) -> Stored:
    """`Architecture.gguf_tensor` of mixtures of experts: the experts of a layer are stacked in one tensor."""
    expert = ExpertName.of(name)
    if expert is not None:
        return Stored(f"blk.{expert.layer}.ffn_{expert.part}_exps.{expert.kind}", member=expert.member(spec))
    score_bias = _SCORE_BIAS.fullmatch(name)
    if score_bias is not None:
        return Stored(f"blk.{score_bias[1]}.exp_probs_b.bias")
    sinks = _SINKS.fullmatch(name)
    if sinks is not None:
        return Stored(f"blk.{sinks[1]}.attn_sinks.weight")
    return Stored(gguf_name(name))
