"""How the arrays of a step that is launched kernel by kernel come to the device: by one copy, which nobody waits for.

A copy of an array that is not pinned would wait until the device has done all that was queued before, the step that is
under way included: it would stand idle until the next one has been launched.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch

from engine.device.runtime import DeviceRuntime
from engine.device.staging import Staging
from engine.steps.peer_rows import PeerRows
from engine.steps.step_arrays import StepArrays
from engine.steps.step_plan import StepBounds, StepPlan

_ALIGN = 16
_FIRST_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    array: npt.NDArray[np.signedinteger]
    offset: int

    @property
    def end(self) -> int:
        return self.offset + self.array.nbytes


class PlanMemory:
    """Of one device. A plan's memory is its own, and free again with it."""

    def __init__(self, runtime: DeviceRuntime) -> None:
        self._runtime = runtime
        self._staging = Staging(runtime, _FIRST_BYTES)

    def plan(self, arrays: StepArrays, bounds: StepBounds, peers: PeerRows | None) -> StepPlan:
        """On the device, from arrays of the host; the copy is queued."""
        parts = _parts(arrays, peers)
        num_bytes = max(part.end for part in parts)
        stage = self._staging.next(num_bytes)
        span = torch.empty(num_bytes, dtype=torch.uint8, device=self._runtime.device)
        there = {}
        for part in parts:
            stage.array[part.offset : part.end] = np.ascontiguousarray(part.array).reshape(-1).view(np.uint8)
            kind = getattr(torch, part.array.dtype.name)
            there[part.name] = span[part.offset : part.end].view(kind).view(part.array.shape)
        self._staging.send(stage, span)
        pushed = None if peers is None else PeerRows(there.pop("caches"), there.pop("peer_slots"))
        return StepPlan(**there, bounds=bounds, peers=pushed)


def _parts(arrays: StepArrays, peers: PeerRows | None) -> list[_Part]:
    named = {field.name: getattr(arrays, field.name) for field in fields(arrays)}
    if peers is not None:
        named |= {"caches": peers.caches.numpy(), "peer_slots": peers.slots.numpy()}
    parts, offset = [], 0
    for name, array in named.items():
        parts.append(_Part(name, array, offset))
        offset = -(-parts[-1].end // _ALIGN) * _ALIGN
    return parts
