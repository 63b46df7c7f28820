"""Rotary position embedding as data (arXiv 2104.09864): which dimensions turn, and how fast."""

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
    """Each frequency divided by its own factor, half as many as dimensions turn: how GGUF files carry scaling."""

    factors: tuple[float, ...]


RopeScaling = LinearRopeScaling | Llama3RopeScaling | FactorRopeScaling


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """The rotation of Q and K. Dimension i turns with i + half of the turning ones.

    Files that pair neighbours instead have the rows of their projections reordered when they are read, so that layers
    and kernels know one pairing only: see `engine.formats.stored.halves_from_pairs`.
    """

    theta: float
    scaling: RopeScaling | None = None
    rotary_dim: int | None = None
    """Leading dimensions of a head that turn; None: all of them."""

    def dim(self, head_dim: int) -> int:
        """How many dimensions of a head turn."""
        return head_dim if self.rotary_dim is None else self.rotary_dim

    def problems(self, head_dim: int) -> list[str]:
        """What is wrong for heads of this size, in words."""
        found = []
        turning = self.dim(head_dim)
        if turning % 2 or not 0 < turning <= head_dim:
            found.append(f"{turning} of head_dim {head_dim} dimensions turn: rotary embedding needs pairs of a head")
        if not self.theta > 0:
            found.append(f"rope theta is {self.theta}, expected a positive number")
        if isinstance(self.scaling, FactorRopeScaling) and len(self.scaling.factors) != turning // 2:
            found.append(f"{len(self.scaling.factors)} rope factors, expected {turning // 2}")
        return found
