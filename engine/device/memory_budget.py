"""How much of a GPU's memory the KV cache gets: what is left once everything else has been tried on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.device.buckets import GraphKey
from engine.device.runtime import DeviceRuntime
from wire.errors import ErrorCode, SpliceError

_PIECE_BYTES = 2 << 20
"""In such pieces drivers take memory: a second graph may have found room in what was taken for the first, and no graph
is counted for less."""


@dataclass(frozen=True, slots=True)
class MemoryNeeds:
    """Of everything but the KV cache, in bytes."""

    taken: int
    """By weights and by the graphs that were tried, after the trial."""
    passing: int
    """By a step that is launched, while it is computed; given back, and taken again by the next."""
    later: int
    """By all other graphs there may be."""

    @property
    def total(self) -> int:
        return self.taken + self.passing + self.later


def measure_needs(
    runtime: DeviceRuntime,
    launch_largest: Callable[[], None],
    capture: Callable[[GraphKey], None],
    keys: Sequence[GraphKey],
) -> MemoryNeeds:
    """Runs the step that needs most and captures the first two of `keys`, over a cache of one block.

    `keys` are all graphs there may be, the one that needs most first. Graphs share the memory they compute in, which
    that one sizes; what the second adds is what a graph itself takes, so the others are known without being captured.
    A step that is launched computes in other memory, which a capture gives back before it begins: it is read first.
    """
    launch_largest()
    most = runtime.reserved_bytes()
    runtime.trim()
    passing = most - runtime.reserved_bytes()
    for key in keys[:1]:
        capture(key)
    runtime.trim()
    before = runtime.reserved_bytes()
    for key in keys[1:2]:
        capture(key)
    runtime.trim()
    after = runtime.reserved_bytes()
    return MemoryNeeds(after, passing, max(after - before, _PIECE_BYTES) * max(0, len(keys) - 2))


def kv_bytes(total: int, needs: MemoryNeeds, utilization: float) -> int:
    """For the KV cache, of a GPU of `total` bytes of which the share `utilization` may be used. Raises SpliceError
    where nothing is left."""
    left = int(total * utilization) - needs.total
    if left <= 0:
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            f"the GPU has {total >> 20} MiB, {utilization:.0%} of which may be used, and the model takes "
            f"{needs.taken >> 20} MiB, a step up to {needs.passing >> 20} MiB more, graphs captured later "
            f"{needs.later >> 20} MiB: nothing is left for the KV cache; raise gpu_memory_utilization, lower "
            "max_num_batched_tokens, max_num_seqs or max_model_len, capture no graphs (enforce_eager), or use a "
            "smaller model",
            param="gpu_memory_utilization",
        )
    return left
