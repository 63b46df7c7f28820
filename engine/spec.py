"""What a model is, as data: enough to build it, size its KV cache and check its weights, and nothing about files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from engine.rope_spec import RopeSpec

Activation = Literal["silu", "gelu_tanh", "swiglu_oai"]
"""Of a gated MLP, see `engine.ops.signatures.GatedMulOp`."""


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Grouped-query attention of one layer."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: RopeSpec | None
    """None: nothing turns, the layer knows order by its causal mask alone."""
    scale: float
    """Of the scores, usually head_dim ** -0.5."""
    window: int | None = None
    """Tokens a query sees, itself included; None: all before it."""
    softcap: float | None = None
    """Scores become softcap * tanh(scores / softcap)."""
    sinks: bool = False
    """One learned logit per head joins the softmax and takes its share of the mass."""
    qk_norm: bool = False
    """RMS norm of every head of Q and K before rotation, weights `[head_dim]`."""
    qkv_bias: bool = False
    output_bias: bool = False

    @property
    def kv_shape(self) -> tuple[int, int, int]:
        """(planes, heads, values a head) that a token leaves in the cache."""
        return (2, self.num_kv_heads, self.head_dim)

    def served(self, max_len: int) -> AttentionSpec:
        """See `ModelSpec.served`. A window that no sequence outgrows is none: plain attention has faster kernels."""
        rope = None if self.rope is None else self.rope.served(max_len, self.head_dim)
        return replace(self, rope=rope, window=self.window if self.window and self.window < max_len else None)

    def problems(self) -> list[str]:
        """What makes this no attention, in words."""
        sizes = {"num_heads": self.num_heads, "num_kv_heads": self.num_kv_heads, "head_dim": self.head_dim}
        found = _too_small({**sizes, "window": 1 if self.window is None else self.window})
        if found:
            return found
        if self.num_heads % self.num_kv_heads:
            found.append(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if not self.scale > 0:
            found.append(f"the scale of attention scores is {self.scale}, expected a positive number")
        if self.softcap is not None and not self.softcap > 0:
            found.append(f"the cap of attention scores is {self.softcap}, expected a positive number")
        return found + ([] if self.rope is None else self.rope.problems(self.head_dim))


@dataclass(frozen=True, slots=True)
class LatentAttentionSpec:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): the cache holds [latent | rope key] once a token."""

    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    rope: RopeSpec
    """Of the `qk_rope_head_dim` part."""
    scale: float
    norm_eps: float = 1e-6
    """Of the norms of the two latents, which models of this kind do not take from `ModelSpec.rms_norm_eps`."""
    bias: bool = False
    """Of both down-projections and the output projection."""
    files_pair_neighbours: bool = True
    """Whether files have neighbouring dimensions of the turning part turn together; layers always have halves."""
    files_split_up_projection: bool = False
    """Whether files have the up-projections of keys and values apart, stacked by heads, that of keys transposed."""

    @property
    def kv_shape(self) -> tuple[int, int, int]:
        """See `AttentionSpec.kv_shape`."""
        return (1, 1, self.kv_lora_rank + self.qk_rope_head_dim)

    def served(self, max_len: int) -> LatentAttentionSpec:
        """See `ModelSpec.served`."""
        return replace(self, rope=self.rope.served(max_len, self.qk_rope_head_dim))

    def problems(self) -> list[str]:
        """See `AttentionSpec.problems`."""
        found = _too_small(
            {
                "num_heads": self.num_heads,
                "q_lora_rank": 1 if self.q_lora_rank is None else self.q_lora_rank,
                "kv_lora_rank": self.kv_lora_rank,
                "qk_nope_head_dim": self.qk_nope_head_dim,
                "qk_rope_head_dim": self.qk_rope_head_dim,
                "v_head_dim": self.v_head_dim,
            }
        )
        return found or self.rope.problems(self.qk_rope_head_dim)


@dataclass(frozen=True, slots=True)
class MlpSpec:
    """Gated MLP: down(act(gate(x)) * up(x))."""

    intermediate_size: int
    activation: Activation = "silu"
    bias: bool = False

    def problems(self) -> list[str]:
        """What makes this no MLP, in words."""
        return _too_small({"intermediate_size": self.intermediate_size})


@dataclass(frozen=True, slots=True)
class RoutingSpec:
    """From router logits to the weights of the chosen experts."""

    num_experts: int
    top_k: int
    scores: Literal["softmax", "softmax_of_chosen", "sigmoid"]
    normalise: bool
    """Whether the weights of the chosen are divided by their sum."""
    scale: float = 1.0
    """Of the weights, at the end."""
    num_groups: int = 1
    top_groups: int = 1
    """Experts are chosen from so many groups of the `num_groups` only."""
    group_score: Literal["max", "top2_sum"] = "max"
    score_bias: bool = False
    """A learned per-expert bias takes part in the choice, not in the weights."""
    logit_bias: bool = False
    """The router's projection has a bias."""

    def problems(self) -> list[str]:
        """What makes this no routing, in words."""
        found = _too_small(
            {
                "num_experts": self.num_experts,
                "top_k": self.top_k,
                "num_groups": self.num_groups,
                "top_groups": self.top_groups,
            }
        )
        if found:
            return found
        if self.num_experts % self.num_groups:
            found.append(f"num_experts {self.num_experts} is not a multiple of num_groups {self.num_groups}")
        if self.group_score == "top2_sum" and self.num_experts < 2 * self.num_groups:
            found.append(
                f"groups of {self.num_experts // self.num_groups} experts have no two best, as group_score asks"
            )
        if self.top_groups > self.num_groups:
            found.append(f"top_groups {self.top_groups} of {self.num_groups} groups")
        if self.top_k > self.num_experts // self.num_groups * self.top_groups:
            found.append(f"top_k {self.top_k} is more than the experts there are to choose from")
        return found


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """Mixture of experts: every token goes through the MLPs its router chooses."""

    routing: RoutingSpec
    expert: MlpSpec
    shared: MlpSpec | None = None
    """Runs for every token, beside the chosen experts."""

    def problems(self) -> list[str]:
        """What makes this no mixture, in words."""
        shared = [] if self.shared is None else self.shared.problems()
        return self.routing.problems() + self.expert.problems() + shared


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One block: norm, attention, norm, MLP, each pair's result added to the residual stream."""

    attention: AttentionSpec | LatentAttentionSpec
    mlp: MlpSpec | MoeSpec
    post_norms: bool = False
    """Norms after attention and after the MLP as well, before they join the residual stream (Gemma 2, 3)."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder-only language model."""

    architecture: str
    """Key into `engine.models.registry`, for example `llama`."""
    hidden_size: int
    vocab_size: int
    max_positions: int
    """Context length the model was trained for."""
    rms_norm_eps: float
    layers: tuple[LayerSpec, ...]
    tie_embeddings: bool
    """Whether the output projection is the embedding table."""
    norm_offset: float = 0.0
    """Added to the stored weights of every norm (Gemma's safetensors: 1)."""
    embedding_scale: float = 1.0
    """Of what the embedding table gives, before the first layer."""
    logit_softcap: float | None = None
    """Logits become softcap * tanh(logits / softcap)."""

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def kv_shape(self) -> tuple[int, int, int]:
        """(planes, heads, values a head) that a token leaves in the cache in every layer: 2 planes are K and V."""
        return self.layers[0].attention.kv_shape

    @property
    def reach(self) -> int:
        """The longest sequence it can be served for; beyond `max_positions` only where its rope scales with length."""
        ropes = dict.fromkeys(layer.attention.rope for layer in self.layers)
        return max([self.max_positions, *(rope.reach(self.max_positions) for rope in ropes if rope is not None)])

    def served(self, max_len: int) -> ModelSpec:
        """The model as served for sequences of up to `max_len`: see `RopeSpec.served`."""
        made = {
            layer: replace(layer, attention=layer.attention.served(max_len)) for layer in dict.fromkeys(self.layers)
        }
        return replace(self, layers=tuple(made[layer] for layer in self.layers))

    def problems(self) -> list[str]:
        """What makes this no model at all, in words; empty when it is one. For readers of files to report."""
        found = _too_small(
            {
                "num_layers": len(self.layers),
                "hidden_size": self.hidden_size,
                "vocab_size": self.vocab_size,
                "max_positions": self.max_positions,
            }
        )
        distinct = list(dict.fromkeys(self.layers))
        parts = dict.fromkeys(part for layer in distinct for part in (layer.attention, layer.mlp))
        found += dict.fromkeys(problem for part in parts for problem in part.problems())
        if found:
            return found
        if len({layer.attention.kv_shape for layer in distinct}) > 1:
            found.append("layers differ in what they cache of a token, expected the same heads in all of them")
        if not self.rms_norm_eps >= 0:
            found.append(f"rms_norm_eps is {self.rms_norm_eps}, expected a number >= 0")
        if self.logit_softcap is not None and not self.logit_softcap > 0:
            found.append(f"the cap of logits is {self.logit_softcap}, expected a positive number")
        return found


def _too_small(sizes: dict[str, int]) -> list[str]:
    return [f"{name} is {value}, expected at least 1" for name, value in sizes.items() if value < 1]
