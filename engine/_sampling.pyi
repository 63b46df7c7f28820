"""Rows of logits to tokens and log probabilities (csrc/sampling)."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

NOT_FINITE: Final[int]
NOTHING_LEFT: Final[int]

def uniform(seed: int, choice: int, position: int, purpose: int) -> float: ...

class Plan:
    def __init__(
        self,
        *,
        temperature: float,
        min_p: float,
        top_k: int,
        typical_p: float,
        top_p: float,
        seed: int,
        choice: int,
        allowed: Sequence[int] | None,
        bad: Sequence[Sequence[int]],
        bias: Sequence[tuple[int, float]],
        stopping: Sequence[int],
        min_tokens: int,
        repetition: float,
        frequency: float,
        presence: float,
    ) -> None: ...

class Sampler:
    def __init__(self, isa: str = "auto") -> None: ...
    def argmax(self, logits: NDArray[np.float32]) -> list[int]: ...
    def draw(self, logits: NDArray[np.float32], row: int, plan: Plan, tokens: list[int], num_prompt: int) -> int: ...
    def logprobs(
        self, logits: NDArray[np.float32], tokens: Sequence[int], num_top: int
    ) -> list[tuple[float, int, list[int], list[float]] | None]: ...
