"""Blocks outside the pool lie in pieces of host memory; each is found again."""

from __future__ import annotations

import pytest
import torch
from device_models import device_decoder, runtime_of

from engine.blocks.block_copy import BlockCopy, CopyKind
from engine.device import kv_memory
from engine.device.kv_memory import DeviceKVCache


@pytest.mark.parametrize("blocks_of_a_piece", [0.5, 1, 2.5, 9])
def test_what_goes_out_to_any_host_block_comes_back_from_it(platform, monkeypatch, blocks_of_a_piece):
    layout = device_decoder(platform, runtime_of(platform), None).kv_layout(32, "auto")
    monkeypatch.setattr(kv_memory, "_PIECE_BYTES", int(layout.block_bytes * blocks_of_a_piece))
    cache = DeviceKVCache.zeros(layout, 8, platform.device)
    cache.blocks.copy_(torch.randint(0, 256, cache.blocks.shape, generator=torch.Generator().manual_seed(1)))
    before, mover = cache.blocks.clone(), cache.mover(5)
    mover.run(BlockCopy(CopyKind.OUT, source, 4 - source) for source in range(5))
    cache.blocks[:5] = 0
    mover.run([BlockCopy(CopyKind.IN, 4 - source, source) for source in range(5)])
    mover.run([BlockCopy(CopyKind.WITHIN, 2, 7)])
    assert torch.equal(cache.blocks[:7], before[:7])
    assert torch.equal(cache.blocks[7], before[2])
