"""The logits of a step, wherever they lie, and what is asked of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine.sampling.sampler import DrawnToken, SamplingRow, sample


class PendingDraw(Protocol):
    """Tokens that a device draws while the host goes on."""

    def wait(self) -> list[DrawnToken | Exception]:
        """As `StepLogits.draw`. Raises DeviceLost where the device failed: then nothing it holds is of worth."""


class StepLogits(Protocol):
    """`shape` rows of float32. A row that is not finite is a row like any other until it is drawn from."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def wait(self) -> None:
        """Returns when they have been computed. Raises SpliceError where that failed."""

    def host(self, rows: slice | Sequence[int]) -> NDArray[np.float32]:
        """These rows, in memory of the CPU."""

    def draw(self, places: Sequence[int], rows: Sequence[SamplingRow]) -> list[DrawnToken | Exception]:
        """See `engine.sampling.sampler.sample`: row `places[i]` is drawn from as `rows[i]` says."""

    def start_draw(self, places: Sequence[int], rows: Sequence[SamplingRow]) -> PendingDraw:
        """As `draw`, of rows that are all plain (`SamplingRow.is_plain`); the next step may name token i of it as
        `not_drawn_yet(i)`. Of a model that runs ahead."""


class HostLogits:
    """See `StepLogits`; in an array of the CPU."""

    def __init__(self, array: NDArray[np.float32]) -> None:
        self._array = array

    @property
    def shape(self) -> tuple[int, int]:
        """See `StepLogits.shape`."""
        rows, vocab = self._array.shape
        return rows, vocab

    def wait(self) -> None:
        """See `StepLogits.wait`."""

    def host(self, rows: slice | Sequence[int]) -> NDArray[np.float32]:
        """See `StepLogits.host`."""
        return self._array[rows]

    def draw(self, places: Sequence[int], rows: Sequence[SamplingRow]) -> list[DrawnToken | Exception]:
        """See `StepLogits.draw`."""
        own = self._array if len(places) == len(self._array) else self._array[list(places)]
        return sample(own, rows)

    def start_draw(self, places: Sequence[int], rows: Sequence[SamplingRow]) -> PendingDraw:
        """See `StepLogits.start_draw`; no model whose logits these are runs ahead."""
        raise TypeError("logits in memory of the CPU are drawn from at once: their model does not run ahead")
