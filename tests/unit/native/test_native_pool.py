"""Threads that share an operation: whoever comes late changes nothing, and nobody waits for ever."""

from __future__ import annotations

import os

import pytest
import torch

from engine._native import Kernels
from engine.ops.native import NativeOps


@pytest.mark.timeout(120)
@pytest.mark.parametrize("num_threads", [2, 7])
def test_thousands_of_short_pieces_of_work_lose_no_item_and_end(num_threads: int) -> None:
    # More threads than cores: some are put aside in the middle of a piece of work and come back when it is long over.
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(allowed)[:1]))  # inherited by the threads of the pool
    try:
        pool, alone = NativeOps(Kernels("auto", num_threads)), NativeOps(Kernels("auto", 1))
    finally:
        os.sched_setaffinity(0, allowed)
    generator = torch.Generator().manual_seed(3)
    packed = NativeOps.pack(torch.randn(200, 64, generator=generator))
    inputs = [torch.randn(rows, 64, generator=generator) for rows in (1, 2, 9, 33)]
    expected = [alone.lm_head(x, packed) for x in inputs]
    for turn in range(4000):
        which = turn % len(inputs)
        assert torch.equal(pool.lm_head(inputs[which], packed), expected[which]), turn
