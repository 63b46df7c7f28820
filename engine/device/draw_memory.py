"""Where tokens are drawn on a device: what rows ask for goes in, tokens come out, the next step finds them there."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from engine.device.guard import device_guard
from engine.device.runtime import DeviceRuntime, Fence
from engine.ops.cuda.draw import COLUMNS, draw_on_device, fill_columns
from engine.ops.cuda.library import Library

_STAGES = 2
"""A step's tokens may be on their way to the host while the next one's are drawn."""


@dataclass(slots=True)
class _Stage:
    wanted: torch.Tensor
    """`[COLUMNS * max_rows]` int64, pinned."""
    array: npt.NDArray[np.int64]
    """The same memory."""
    found: torch.Tensor
    """`[max_rows]` int64, pinned."""
    sent: Fence | None = None


class TokensOnTheWay:
    """Tokens of one step, drawn or about to be."""

    def __init__(self, fence: Fence, found: torch.Tensor) -> None:
        self._fence = fence
        self._found = found

    def wait(self) -> list[int]:
        """One a row; −1 for a row that is not finite. Raises DeviceLost where the device failed."""
        self._fence.wait()
        return self._found.tolist()


class DrawMemory:
    """Of one model: for steps that follow each other, each of at most `max_rows` draws."""

    def __init__(self, runtime: DeviceRuntime, library: Library, max_rows: int) -> None:
        self._runtime = runtime
        self._library = library
        self._columns = torch.zeros(COLUMNS * max_rows, dtype=torch.int64, device=runtime.device)
        self._tokens = torch.zeros(max_rows, dtype=torch.int64, device=runtime.device)
        self._stages = [self._new(max_rows) for _ in range(_STAGES)]

    def settle(self) -> None:
        """Returns when everything that was queued is done. Raises DeviceLost where the device will do nothing more."""
        self._runtime.settle()

    def guard(self, doing: str) -> AbstractContextManager[None]:
        """See `device_guard`; for whoever reads what lies there."""
        return device_guard(self._runtime, doing)

    def draw(self, logits: torch.Tensor, rows: Sequence[bytes], positions: Sequence[int]) -> TokensOnTheWay:
        """Queues the draw of one token a row of `logits` `[len(rows), vocab]` float32, and its way to the host. `rows`
        are `packed`, `positions` those of the tokens drawn."""
        stage = self._stages[0]
        self._stages.append(self._stages.pop(0))
        if stage.sent is not None:
            stage.sent.wait()
        num_rows, count = len(rows), COLUMNS * len(rows)
        fill_columns(stage.array[:count].reshape(COLUMNS, num_rows), rows, positions)
        stage.sent = self._runtime.upload(self._columns[:count], stage.wanted[:count])
        draw_on_device(self._library, logits, self._columns[:count].view(COLUMNS, num_rows), self._tokens[:num_rows])
        stage.sent = self._runtime.download(stage.found[:num_rows], self._tokens[:num_rows])
        return TokensOnTheWay(stage.sent, stage.found[:num_rows])

    def resolved(self, token_ids: torch.Tensor) -> torch.Tensor:
        """`token_ids` int64 on the device with `not_drawn_yet(i)` replaced by token i of the draw before."""
        drawn = self._tokens[(-1 - token_ids).clamp_min(0)]
        return torch.where(token_ids < 0, drawn, token_ids)

    def _new(self, max_rows: int) -> _Stage:
        wanted, found = (self._runtime.pinned(8 * count).view(torch.int64) for count in (COLUMNS * max_rows, max_rows))
        return _Stage(wanted, wanted.numpy(), found)
