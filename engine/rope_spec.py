"""Rotary position embedding as data (arXiv 2104.09864): which dimensions turn, and how fast."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class LinearRopeScaling:
    """Positions divided by `factor` (arXiv 2306.15595)."""

    factor: float

    def problems(self, turning: int) -> list[str]:
        """What is wrong when so many dimensions turn, in words."""
        return _not_positive({"factor": self.factor})


@dataclass(frozen=True, slots=True)
class Llama3RopeScaling:
    """Long wavelengths divided by `factor`, short ones kept, a smooth ramp between (Llama 3.1 model card)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int

    def problems(self, turning: int) -> list[str]:
        """See `LinearRopeScaling.problems`."""
        found = _not_positive({"factor": self.factor, "low_freq_factor": self.low_freq_factor})
        if not self.high_freq_factor > self.low_freq_factor:
            found.append(f"rope high_freq_factor {self.high_freq_factor} is not above low_freq_factor")
        return found


@dataclass(frozen=True, slots=True)
class FactorRopeScaling:
    """Each frequency divided by its own factor, half as many as dimensions turn: how GGUF files carry scaling."""

    factors: tuple[float, ...]
    attention_factor: float = 1.0
    """Of cosines and sines."""

    def problems(self, turning: int) -> list[str]:
        """See `LinearRopeScaling.problems`."""
        found = _not_positive(
            {"attention_factor": self.attention_factor, "smallest factor": min(self.factors, default=1)}
        )
        if len(self.factors) != turning // 2:
            found.append(f"{len(self.factors)} rope factors, expected {turning // 2}")
        return found


@dataclass(frozen=True, slots=True)
class DynamicRopeScaling:
    """NTK-aware: a larger base for longer contexts, none up to `original_max_positions`.

    The length that counts is the longest the model is served for, see `RopeSpec.served`.
    """

    factor: float
    original_max_positions: int

    def problems(self, turning: int) -> list[str]:
        """See `LinearRopeScaling.problems`."""
        found = _not_positive({"original_max_positions": self.original_max_positions})
        if not self.factor >= 1:
            found.append(f"rope factor is {self.factor}, expected a number >= 1")
        if turning <= 2:
            found.append(f"{turning} dimensions turn, expected more than 2 for dynamic scaling")
        return found

    def theta(self, theta: float, turning: int, max_len: int) -> float:
        """The base for sequences of up to `max_len`."""
        length = max(max_len, self.original_max_positions)
        growth = self.factor * length / self.original_max_positions - (self.factor - 1)
        return float(theta * growth ** (turning / (turning - 2)))


@dataclass(frozen=True, slots=True)
class YarnRopeScaling:
    """Frequencies that turn less than `beta_slow` times in the original context divided by `factor`, those that turn
    more than `beta_fast` times kept, a ramp between (arXiv 2309.00071)."""

    factor: float
    original_max_positions: int
    beta_fast: float
    beta_slow: float
    attention_factor: float
    """Of cosines and sines."""
    truncate: bool = True
    """Whether the ramp ends at whole dimensions."""

    def problems(self, turning: int) -> list[str]:
        """See `LinearRopeScaling.problems`."""
        return _not_positive(
            {
                "factor": self.factor,
                "original_max_positions": self.original_max_positions,
                "beta_fast": self.beta_fast,
                "beta_slow": self.beta_slow,
                "attention_factor": self.attention_factor,
            }
        )


@dataclass(frozen=True, slots=True)
class LongRopeScaling:
    """Two sets of factors, one for contexts up to `original_max_positions` and one for longer ones (arXiv 2402.13753).

    The length that counts is the longest the model is served for, see `RopeSpec.served`.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_positions: int
    attention_factor: float

    def problems(self, turning: int) -> list[str]:
        """See `LinearRopeScaling.problems`."""
        either = (
            FactorRopeScaling(factors, self.attention_factor) for factors in (self.short_factors, self.long_factors)
        )
        return [problem for scaling in either for problem in scaling.problems(turning)]

    def factors(self, max_len: int) -> FactorRopeScaling:
        """Those for sequences of up to `max_len`."""
        is_long = max_len > self.original_max_positions
        return FactorRopeScaling(self.long_factors if is_long else self.short_factors, self.attention_factor)


RopeScaling = (
    LinearRopeScaling | Llama3RopeScaling | FactorRopeScaling | DynamicRopeScaling | YarnRopeScaling | LongRopeScaling
)


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

    def served(self, max_len: int, head_dim: int) -> RopeSpec:
        """The one rotation used for every request of a model served for sequences of up to `max_len`.

        Dynamic and long scaling say how to turn for a sequence of a known length. Were that the length of each
        request, a cached key would be good for requests of its own kind only, and would have to be computed anew when
        a sequence outgrows its kind. Were it anything of the batch, a request's tokens would depend on its
        neighbours. So it is the served length: a function of the deployment, the same for all requests.
        """
        match self.scaling:
            case DynamicRopeScaling() as dynamic:
                return replace(self, theta=dynamic.theta(self.theta, self.dim(head_dim), max_len), scaling=None)
            case LongRopeScaling() as long:
                return replace(self, scaling=long.factors(max_len))
            case _:
                return self

    def reach(self, max_positions: int) -> int:
        """The longest sequence worth serving with a model trained for `max_positions`."""
        if isinstance(self.scaling, DynamicRopeScaling | YarnRopeScaling):
            return max(max_positions, int(self.scaling.factor * self.scaling.original_max_positions))
        return max_positions

    def problems(self, head_dim: int) -> list[str]:
        """What is wrong for heads of this size, in words."""
        turning = self.dim(head_dim)
        if turning % 2 or not 0 < turning <= head_dim:
            return [f"{turning} of head_dim {head_dim} dimensions turn: rotary embedding needs pairs of a head"]
        found = _not_positive({"theta": self.theta}) + ([] if self.scaling is None else self.scaling.problems(turning))
        if isinstance(self.scaling, YarnRopeScaling) and not self.theta > 1:
            found.append(f"rope theta is {self.theta}, expected more than 1 for yarn scaling")
        return found


def _not_positive(values: dict[str, float]) -> list[str]:
    return [f"rope {name} is {value}, expected a positive number" for name, value in values.items() if not value > 0]
