"""Where captured steps find their inputs: one span of device memory, written by one copy a step."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from engine.device.buckets import GraphKey
from engine.device.runtime import DeviceRuntime
from engine.device.staging import Staging
from engine.steps.step_arrays import StepArrays
from engine.steps.step_plan import StepBounds, StepPlan

_ALIGN = 16
_NO_SLOT = -1
"""Where the rows that fill up a bucket store their keys and values: nowhere."""


class StepLayout:
    """Where each array of a step of one size lies in the span: bytes, shape, dtype."""

    def __init__(self, key: GraphKey, block_tokens: int) -> None:
        rows, sequences, blocks = key.rows, key.sequences, -(-key.context // block_tokens)
        shapes: tuple[tuple[str, tuple[int, ...], type[np.signedinteger]], ...] = (
            ("token_ids", (rows,), np.int64),
            ("positions", (rows,), np.int64),
            ("slots", (rows,), np.int64),
            ("prompt_ends", (sequences,), np.int64),
            ("logit_rows", (rows,), np.int64),
            ("query_starts", (sequences + 1,), np.int32),
            ("starts", (sequences,), np.int32),
            ("block_tables", (sequences, blocks), np.int32),
        )
        self.key = key
        self.fields: dict[str, tuple[slice, tuple[int, ...], np.dtype[np.signedinteger]]] = {}
        offset = 0
        for name, shape, kind in shapes:
            dtype = np.dtype(kind)
            end = offset + math.prod(shape) * dtype.itemsize
            self.fields[name] = (slice(offset, end), shape, dtype)
            offset = -(-end // _ALIGN) * _ALIGN
        self.num_bytes = offset

    def host(self, span: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.signedinteger]]:
        """The arrays in a span of host memory."""
        return {name: span[place].view(dtype).reshape(shape) for name, (place, shape, dtype) in self.fields.items()}

    def plan(self, span: torch.Tensor) -> StepPlan:
        """The arrays in a span of device memory."""
        tensors = {}
        for name, (place, shape, dtype) in self.fields.items():
            tensors[name] = span[place].view(getattr(torch, dtype.name)).view(shape)
        singles = self.key.sequences if self.key.queries == 1 else 0
        return StepPlan(**tensors, bounds=StepBounds(self.key.queries, self.key.context, singles), peers=None)


class StepMemory:
    """The span, large enough for the largest step, and what is copied to it."""

    def __init__(self, runtime: DeviceRuntime, largest: GraphKey, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._layouts: dict[GraphKey, StepLayout] = {}
        num_bytes = self.layout(largest).num_bytes
        self._span = torch.zeros(num_bytes, dtype=torch.uint8, device=runtime.device)
        self._staging = Staging(runtime, num_bytes)

    def layout(self, key: GraphKey) -> StepLayout:
        """Of steps of this size."""
        if key not in self._layouts:
            self._layouts[key] = StepLayout(key, self._block_tokens)
        return self._layouts[key]

    def plan(self, key: GraphKey) -> StepPlan:
        """The tensors that steps of this size compute from; the same memory every time."""
        return self.layout(key).plan(self._span)

    def write(self, key: GraphKey, arrays: StepArrays | None) -> None:
        """Queues the copy of a step that fits `key`, filled up with rows nobody reads; None: of those rows alone.

        Every sequence has `key.queries` rows, and of all rows logits are computed.
        """
        layout = self.layout(key)
        stage = self._staging.next(layout.num_bytes)
        fill(layout.host(stage.array[: layout.num_bytes]), key, arrays)
        self._staging.send(stage, self._span[: layout.num_bytes])


def fill(to: dict[str, npt.NDArray[np.signedinteger]], key: GraphKey, arrays: StepArrays | None) -> None:
    """Writes a step into arrays of the sizes of `key`. Rows without a request are sequences of their own at position 0
    that store nothing."""
    rows = 0 if arrays is None else len(arrays.token_ids)
    sequences = 0 if arrays is None else len(arrays.starts)
    for name, empty in (("token_ids", 0), ("positions", 0), ("slots", _NO_SLOT)):
        to[name][rows:] = empty
    for name in ("starts", "prompt_ends"):
        to[name][sequences:] = 0
    if key.queries > 1:
        to["positions"][rows:] = np.arange(key.rows - rows) % key.queries
    tables = to["block_tables"]
    tables[sequences:] = 0
    to["query_starts"][:] = np.arange(key.sequences + 1) * key.queries
    to["logit_rows"][:] = np.arange(key.rows)
    if arrays is None:
        return
    for name in ("token_ids", "positions", "slots"):
        to[name][:rows] = getattr(arrays, name)
    for name in ("starts", "prompt_ends"):
        to[name][:sequences] = getattr(arrays, name)
    width = arrays.block_tables.shape[1]
    tables[:sequences, :width] = arrays.block_tables
    tables[:sequences, width:] = 0
