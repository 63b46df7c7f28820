"""What a model is, as data: enough to build it, size its KV cache and check its weights, and nothing about files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LinearRopeScaling:
    """Positions divided by `factor` (arXiv 2306.15595)."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3RopeScaling:
    """Long wavelengths divided by `factor`, short ones kept, a smooth ramp between (Llama 3.1 model card)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, slots=True)
class FactorRopeScaling:
    """Each frequency divided by its own factor, `head_dim / 2` of them: how GGUF files carry llama3 scaling."""

    factors: tuple[float, ...]


RopeScaling = LinearRopeScaling | Llama3RopeScaling | FactorRopeScaling


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding over the whole head (arXiv 2104.09864), halves paired."""

    theta: float
    scaling: RopeScaling | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder of the Llama family: pre-norm blocks of grouped-query attention and a gated SiLU MLP."""

    architecture: str
    """Key into the model registry, for example `llama`."""
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    """Context length the model was trained for."""
    rms_norm_eps: float
    rope: RopeSpec
    tie_embeddings: bool
    """Whether the output projection is the embedding table."""
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False

    def problems(self) -> list[str]:
        """What makes this no model at all, in words; empty when it is one. For readers of files to report."""
        sizes = {
            "num_layers": self.num_layers,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_positions": self.max_positions,
        }
        found = [f"{name} is {value}, expected at least 1" for name, value in sizes.items() if value < 1]
        if found:
            return found
        if self.num_heads % self.num_kv_heads:
            found.append(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.head_dim % 2:
            found.append(f"head_dim {self.head_dim} is odd: rotary embedding needs pairs")
        if not self.rope.theta > 0:
            found.append(f"rope theta is {self.rope.theta}, expected a positive number")
        if not self.rms_norm_eps >= 0:
            found.append(f"rms_norm_eps is {self.rms_norm_eps}, expected a number >= 0")
        scaling = self.rope.scaling
        if isinstance(scaling, FactorRopeScaling) and len(scaling.factors) != self.head_dim // 2:
            found.append(f"{len(scaling.factors)} rope factors, expected head_dim / 2 = {self.head_dim // 2}")
        return found
