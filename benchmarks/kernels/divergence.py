"""How far the predictions of one run are from those of another, as figures."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

MEAN_KL_BOUND, PERPLEXITY_BOUND = 0.01, 0.01
"""What narrower numbers may cost: nats a prediction, and a share of the perplexity."""
Floats = npt.NDArray[np.float64]
Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Figures:
    """Of a run beside the exact one. Divergences in nats a prediction."""

    mean_kl: float
    p99_kl: float
    largest_kl: float
    perplexity: float
    perplexity_change: float
    """A share of the exact run's."""
    same_first_choice: float
    """A share of the predictions."""

    @property
    def are_within_bounds(self) -> bool:
        return self.mean_kl <= MEAN_KL_BOUND and abs(self.perplexity_change) <= PERPLEXITY_BOUND


@dataclass(slots=True)
class Tally:
    """What is known of a run so far."""

    divergences: list[Floats] = field(default_factory=list)
    exact_loss: float = 0.0
    loss: float = 0.0
    agreed: int = 0

    def add(self, exact: Floats, found: Floats, following: Tokens) -> None:
        """Log probabilities `[n, vocab]` of both runs, and the tokens `[n]` that came."""
        self.divergences.append((np.exp(exact) * (exact - found)).sum(axis=1))
        self.exact_loss -= _sum_at(exact, following)
        self.loss -= _sum_at(found, following)
        self.agreed += int((exact.argmax(axis=1) == found.argmax(axis=1)).sum())

    @property
    def count(self) -> int:
        return sum(len(each) for each in self.divergences)

    def figures(self) -> Figures:
        """Of at least one prediction."""
        divergences, count = np.concatenate(self.divergences), self.count
        return Figures(
            mean_kl=round(float(divergences.mean()), 6),
            p99_kl=round(float(np.quantile(divergences, 0.99)), 5),
            largest_kl=round(float(divergences.max()), 4),
            perplexity=round(float(np.exp(self.loss / count)), 4),
            perplexity_change=round(float(np.expm1((self.loss - self.exact_loss) / count)), 6),
            same_first_choice=round(self.agreed / count, 4),
        )


def log_softmax(logits: npt.NDArray[np.float32]) -> Floats:
    """`[n, vocab]`, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide


def _sum_at(log_probabilities: Floats, tokens: Tokens) -> float:
    return float(np.take_along_axis(log_probabilities, tokens[:, None], axis=1).sum())
