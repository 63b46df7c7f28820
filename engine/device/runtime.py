"""What steps ask of a GPU beside computing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch


class Fence(Protocol):
    """A place in the device's queue of work."""

    def wait(self) -> None:
        """Returns when the device has come past it. Raises DeviceLost where it failed on the way."""


class DeviceRuntime(Protocol):
    """One GPU and one queue of work on it. Not thread-safe: one thread at a time computes steps."""

    @property
    def device(self) -> torch.device: ...

    def enter(self) -> None:
        """Makes it the device of the calling thread: what that launches goes there. Costs nothing the next time."""

    def pinned(self, num_bytes: int) -> torch.Tensor:
        """uint8 `[num_bytes]` of host memory that the device copies from and to by itself."""

    def upload(self, dest: torch.Tensor, source: torch.Tensor) -> Fence:
        """Queues a copy from pinned memory; `source` may be written to again once the fence is passed."""

    def download(self, dest: torch.Tensor, source: torch.Tensor) -> Fence:
        """Queues a copy to pinned memory; `dest` may be read once the fence is passed."""

    def record(self) -> int:
        """The driver's own number of an event behind all that was queued so far, by which others can wait for it. It is
        recorded anew by the next call. Raises DeviceLost where the device failed."""

    def capture(self, work: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        """Runs `work` once, so that whatever happens only the first time has happened, then records it.

        Returns the tensor that recorded work writes to, float32, and what queues it again. Recorded work must neither
        wait nor read or allocate host memory; all captures share the memory they allocate, so that the result of one
        holds until the next is queued. What `trim` gives back is given back. Raises SpliceError for work that cannot be
        recorded, or for which memory does not suffice; what was captured before can be replayed nevertheless.
        """

    def settle(self) -> None:
        """Returns when everything that was queued is done. Raises DeviceLost where the device will do nothing more."""

    def trim(self) -> None:
        """Waits for the device, and gives back what is kept for later though nobody has it."""

    def forget_captures(self) -> None:
        """What was captured is used no more, and later captures share other memory."""

    def reserved_bytes(self) -> int:
        """Device memory that has been taken since this was made, with what is kept for later."""

    def total_bytes(self) -> int:
        """Device memory there is."""
