"""Pinned host memory from which a step's inputs go to the device while the host goes on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from engine.device.runtime import DeviceRuntime, Fence

_STAGES = 2
"""So many steps may be on their way to the device at once."""


@dataclass(slots=True)
class Stage:
    """To be written to, then sent, once a turn."""

    pinned: torch.Tensor
    array: npt.NDArray[np.uint8]
    """The same memory."""
    sent: Fence | None = None


class Staging:
    """Stages that take turns: one is written to while the device may still read the other."""

    def __init__(self, runtime: DeviceRuntime, num_bytes: int) -> None:
        self._runtime = runtime
        self._stages = [self._new(num_bytes) for _ in range(_STAGES)]

    def next(self, num_bytes: int) -> Stage:
        """One that nobody reads, of so many bytes at least."""
        stage = self._stages.pop(0)
        if stage.sent is not None:
            stage.sent.wait()
        if len(stage.array) < num_bytes:
            stage = self._new(1 << (num_bytes - 1).bit_length())
        self._stages.append(stage)
        return stage

    def send(self, stage: Stage, to: torch.Tensor) -> None:
        """Queues the copy of its first bytes, as many as `to` has."""
        stage.sent = self._runtime.upload(to, stage.pinned[: len(to)])

    def _new(self, num_bytes: int) -> Stage:
        pinned = self._runtime.pinned(num_bytes)
        return Stage(pinned, pinned.numpy())
