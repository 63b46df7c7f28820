"""Where a pool on a GPU lies notices that the GPU is gone; where one on the CPU lies there is nothing to notice."""

from __future__ import annotations

import pytest
from device_pair import LAYOUT
from fake_device import FakeDevice, FakeKernels

from engine.blocks.kv_cache import KVCache
from engine.device.device_lost import DeviceLost
from kvtransfer.device_pool import DevicePoolMemory
from worker.pool_place import PoolPlace


def test_a_device_that_fails_calls_is_lost() -> None:
    device = FakeDevice()
    pool = DevicePoolMemory(LAYOUT, 2, 1, device, FakeKernels(device))
    written = device.new_event()
    device.record(written, device.new_stream())
    place = PoolPlace(pool, KVCache.zeros(LAYOUT, 2), written)
    place.check_device()
    device.fail_next = "is_done"
    with pytest.raises(DeviceLost, match="is_done"):
        place.check_device()
    pool.close()
