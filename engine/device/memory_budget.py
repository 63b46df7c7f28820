"""How much of a GPU's memory the KV cache gets: what is left once everything else has been tried on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.device.buckets import GraphKey
from wire.errors import ErrorCode, SpliceError


@dataclass(frozen=True, slots=True)
class MemoryNeeds:
    """Of everything but the KV cache, in bytes."""

    taken: int
    """By weights, the largest step and graphs, after the trial."""
    later: int
    """By the graphs that were not tried."""


def measure_needs(
    reserved_bytes: Callable[[], int],
    launch_largest: Callable[[], None],
    capture: Callable[[GraphKey], None],
    keys: Sequence[GraphKey],
) -> MemoryNeeds:
    """Runs the largest step and captures the two largest graphs over a cache of one block.

    Graphs share the memory they compute in, which the largest of them sizes; what the second adds is what a graph
    itself takes, so the others are known without being captured. `keys` largest first.
    """
    launch_largest()
    for key in keys[:1]:
        capture(key)
    before = reserved_bytes()
    for key in keys[1:2]:
        capture(key)
    after = reserved_bytes()
    return MemoryNeeds(after, (after - before) * max(0, len(keys) - 2))


def kv_bytes(total: int, needs: MemoryNeeds, utilization: float) -> int:
    """For the KV cache, of a GPU of `total` bytes of which the share `utilization` may be used. Raises SpliceError
    where nothing is left."""
    left = int(total * utilization) - needs.taken - needs.later
    if left <= 0:
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            f"the GPU has {total >> 20} MiB, {utilization:.0%} of which may be used, and the model takes "
            f"{(needs.taken + needs.later) >> 20} MiB with its graphs: nothing is left for the KV cache; raise "
            "gpu_memory_utilization, lower max_num_batched_tokens or max_num_seqs, or use a smaller model",
            param="gpu_memory_utilization",
        )
    return left
