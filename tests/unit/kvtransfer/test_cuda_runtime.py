"""The face over CUDA's driver, called against a driver of host memory that is compiled with NVIDIA's own header."""

from __future__ import annotations

import mmap
import os
import subprocess
import threading
from pathlib import Path

import pytest
from kv_pair import LAYOUT, pattern

from kvtransfer.cuda_runtime import CudaRuntime, why_missing
from kvtransfer.device_runtime import DeviceError
from wire.errors import ErrorCode, SpliceError

OWN, OTHER = bytes(range(16)).hex(), bytes(range(0xF0, 0x100)).hex()


def _finish(device: CudaRuntime, stream: int) -> None:
    event = device.new_event()
    device.record(event, stream)
    assert not device.is_done(event)
    assert device.is_done(event)
    device.end_event(event)


def test_bytes_go_to_the_device_and_come_back(driver: str) -> None:
    device = CudaRuntime(0, driver)
    assert (device.uuid, device.context, device.free_bytes()) == (OWN, 0x1234, 5 << 32)
    stream, address, pinned = device.new_stream(), device.allocate(4096), device.allocate_pinned(4096)
    device.clear(address, 4096, stream)
    pinned.view[:] = pattern(3, 4096)
    device.copy(address + 1024, pinned.address + 1024, 2048, stream)
    pinned.view[:] = bytes(4096)
    device.copy(pinned.address, address, 4096, stream)
    _finish(device, stream)
    assert bytes(pinned.view) == bytes(1024) + pattern(3, 4096)[1024:3072] + bytes(1024)
    device.free_pinned(pinned)
    device.free(address)
    device.end_stream(stream)


def test_an_export_names_its_allocation_and_the_place_within_it(driver: str) -> None:
    device = CudaRuntime(0, driver)
    address = device.allocate(8192)
    handle, offset = device.export(address + 512)
    assert (len(handle), offset) == (64, 512)
    assert device.open_export(handle) == address
    device.close_export(address)
    with pytest.raises(DeviceError, match="expected 64"):
        device.open_export(handle[:-1])
    with pytest.raises(DeviceError, match="cuIpcOpenMemHandle_v2"):
        device.open_export(bytes(64))
    device.free(address)


def test_memory_of_a_file_is_reached_by_the_device_while_it_is_pinned(driver: str) -> None:
    device = CudaRuntime(0, driver)
    fd = os.memfd_create("shared")
    os.ftruncate(fd, 8192)
    mapping = mmap.mmap(fd, 8192)
    pinned = device.pin(mapping)
    with pytest.raises(DeviceError, match="cuMemHostRegister_v2"):
        device.pin(mapping)
    stream, address = device.new_stream(), device.allocate(4096)
    os.pwrite(fd, pattern(5, 4096), 4096)
    device.copy(address, pinned.address + 4096, 4096, stream)
    device.copy(pinned.address, address, 4096, stream)
    _finish(device, stream)
    assert os.pread(fd, 4096, 0) == pattern(5, 4096)
    device.unpin(pinned)
    with pytest.raises(KeyError):
        device.unpin(pinned)
    device.unpin(device.pin(mapping))
    os.close(fd)


def test_every_thread_gets_the_devices_context(driver: str) -> None:
    device = CudaRuntime(0, driver)
    event, stream = device.new_event(), device.new_stream()
    found: list[object] = []

    def ask() -> None:
        try:
            device.is_done(event)
            device.wait(stream, event)
            found.append(device.free_bytes())
        except DeviceError as error:
            found.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert found == [5 << 32]
    device.end_event(event)
    device.end_stream(stream)


def test_what_the_driver_refuses_is_raised_in_its_own_words(driver: str) -> None:
    device = CudaRuntime(0, driver)
    with pytest.raises(DeviceError, match=r"cuMemAlloc_v2: out of memory \(CUDA_ERROR_OUT_OF_MEMORY\)"):
        device.allocate(1 << 41)
    with pytest.raises(DeviceError, match=r"cuMemFree_v2: invalid argument"):
        device.free(0x10)


def test_a_device_is_reached_where_the_driver_says_so_or_does_not_know(driver: str) -> None:
    first, second = CudaRuntime(0, driver), CudaRuntime(1, driver)
    assert first.can_reach(OWN)
    assert not first.can_reach(OTHER)
    assert second.can_reach(OWN)
    assert first.can_reach("ab" * 16)


def test_a_machine_without_driver_or_device_is_explained(driver: str, tmp_path: Path) -> None:
    assert why_missing(driver) == ""
    assert "install NVIDIA's" in why_missing(str(tmp_path / "libcuda.so.1"))
    with pytest.raises(SpliceError, match="not among the 2") as none:
        CudaRuntime(2, driver)
    assert none.value.code is ErrorCode.BAD_SETTING
    old = tmp_path / "old.so"
    (tmp_path / "old.cpp").write_text('extern "C" int cuInit(unsigned) { return 0; }')
    subprocess.run(["g++", "-shared", "-fPIC", str(tmp_path / "old.cpp"), "-o", str(old)], check=True)
    assert "expected a driver of CUDA 12 or later" in why_missing(str(old))


def test_a_pool_on_the_driver_gives_back_the_bytes_it_was_given(driver: str) -> None:
    from fake_device import FakeKernels

    from kvtransfer.device_pool import DevicePoolMemory

    device = CudaRuntime(0, driver)
    pool = DevicePoolMemory(LAYOUT, 3, 1, device, FakeKernels(device))  # type: ignore[arg-type]
    with pool.filling(2) as dest:
        dest[:] = pattern(9, LAYOUT.block_bytes)
    with pool.lent(2) as held, pool.lent(1) as other:
        assert (bytes(held), any(other)) == (pattern(9, LAYOUT.block_bytes), False)
    assert pool.__cuda_array_interface__["shape"] == (3, LAYOUT.block_bytes)
    pool.close()
