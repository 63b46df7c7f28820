"""`device_runtime.DeviceRuntime` over CUDA's driver, libcuda, which every machine with an NVIDIA GPU has.

Called through ctypes: no package is needed, CUDA 12 and 13 alike, and every call lets go of the interpreter lock. The
device's primary context is used, the one torch and CuPy use, so that addresses, streams and events are theirs too.
CuPy would bring the same dozen calls in a package larger than Splice. Not yet run on a GPU: tests call a driver of
their own, built against cuda.h.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from ctypes import byref, c_char_p, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p

from kvtransfer.device_runtime import DeviceError, Pinned
from wire.errors import ErrorCode, SpliceError

LIBRARY = "libcuda.so.1"
_SUCCESS, _NOT_READY = 0, 600
_HANDLE_BYTES = 64
_STREAM_NON_BLOCKING = 1
_EVENT_DISABLE_TIMING = 2
_HOST_PORTABLE_AND_MAPPED = 1 | 2
_IPC_LAZY_ENABLE_PEER_ACCESS = 1
_CAPTURE_MODE_RELAXED = 2


class _IpcHandle(ctypes.Structure):
    """CUipcMemHandle; passed by value."""

    _fields_ = (("reserved", c_ubyte * _HANDLE_BYTES),)


class _Uuid(ctypes.Structure):
    _fields_ = (("bytes", c_ubyte * 16),)


# By the names the library exports: those of cuda.h for CUDA 12 and 13. CUdeviceptr is 64 bits, CUdevice an int.
_OUT = c_void_p
_SIGNATURES: dict[str, tuple[type, ...]] = {
    "cuInit": (c_uint,),
    "cuDeviceGetCount": (_OUT,),
    "cuDeviceGet": (_OUT, c_int),
    "cuDeviceGetUuid_v2": (_OUT, c_int),
    "cuDeviceCanAccessPeer": (_OUT, c_int, c_int),
    "cuDevicePrimaryCtxRetain": (_OUT, c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuThreadExchangeStreamCaptureMode": (_OUT,),
    "cuMemGetInfo_v2": (_OUT, _OUT),
    "cuMemAlloc_v2": (_OUT, c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemGetAddressRange_v2": (_OUT, _OUT, c_uint64),
    "cuIpcGetMemHandle": (_OUT, c_uint64),
    "cuIpcOpenMemHandle_v2": (_OUT, _IpcHandle, c_uint),
    "cuIpcCloseMemHandle": (c_uint64,),
    "cuMemHostAlloc": (_OUT, c_size_t, c_uint),
    "cuMemHostGetDevicePointer_v2": (_OUT, c_void_p, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemHostRegister_v2": (c_void_p, c_size_t, c_uint),
    "cuMemHostUnregister": (c_void_p,),
    "cuStreamCreate": (_OUT, c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamWaitEvent": (c_void_p, c_void_p, c_uint),
    "cuEventCreate": (_OUT, c_uint),
    "cuEventDestroy_v2": (c_void_p,),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventQuery": (c_void_p,),
    "cuMemcpyAsync": (c_uint64, c_uint64, c_size_t, c_void_p),
    "cuMemsetD8Async": (c_uint64, c_ubyte, c_size_t, c_void_p),
    "cuGetErrorName": (c_int, _OUT),
    "cuGetErrorString": (c_int, _OUT),
}


def why_missing(library: str = LIBRARY) -> str:
    """Empty if there is a GPU that can be used, otherwise what is missing and the remedy. Makes no context."""
    try:
        devices = _Driver(library).devices()
    except SpliceError as error:
        return error.message
    except DeviceError as error:
        return f"the CUDA driver cannot be used: {error}"
    return "" if devices else "the CUDA driver sees no GPU: look at CUDA_VISIBLE_DEVICES"


class _Driver:
    """The library, and its words for what it refuses."""

    def __init__(self, library: str) -> None:
        """Raises SpliceError(MISSING_PART) where there is none, or one that is too old."""
        try:
            self.library = ctypes.CDLL(library)
        except OSError as error:
            raise SpliceError(
                ErrorCode.MISSING_PART, f"no CUDA driver ({error}); install NVIDIA's where there is a GPU"
            ) from None
        for name, arguments in _SIGNATURES.items():
            try:
                getattr(self.library, name).argtypes = arguments
            except AttributeError:
                raise SpliceError(
                    ErrorCode.MISSING_PART, f"{library} has no {name}: expected a driver of CUDA 12 or later"
                ) from None

    def call(self, name: str, *arguments: object) -> None:
        """Raises DeviceError."""
        self.check(name, getattr(self.library, name)(*arguments))

    def check(self, name: str, code: int) -> None:
        if code != _SUCCESS:
            raise DeviceError(
                f"{name}: {self._words('cuGetErrorString', code)} ({self._words('cuGetErrorName', code)})"
            )

    def devices(self) -> list[tuple[int, str]]:
        """(CUdevice, uuid) of each, in the process's order; raises DeviceError."""
        self.call("cuInit", 0)
        count = c_int()
        self.call("cuDeviceGetCount", byref(count))
        devices = []
        for ordinal in range(count.value):
            device, uuid = c_int(), _Uuid()
            self.call("cuDeviceGet", byref(device), ordinal)
            self.call("cuDeviceGetUuid_v2", byref(uuid), device.value)
            devices.append((device.value, bytes(uuid.bytes).hex()))
        return devices

    def _words(self, of: str, code: int) -> str:
        text = c_char_p()
        getattr(self.library, of)(code, byref(text))
        return (text.value or b"unknown error").decode()


class CudaRuntime:
    """One GPU, the process's only one: each thread is given its primary context with its first call, and keeps it."""

    def __init__(self, ordinal: int = 0, library: str = LIBRARY) -> None:
        """`ordinal` counts the devices this process sees. Raises SpliceError(MISSING_PART) where there is no driver,
        or one that is too old, and (BAD_SETTING) where there is no such device."""
        self._driver = _Driver(library)
        self._thread = threading.local()
        self._hosted: dict[int, int] = {}
        self._context = c_void_p()
        try:
            self._devices = self._driver.devices()
            if not 0 <= ordinal < len(self._devices):
                raise SpliceError(
                    ErrorCode.BAD_SETTING,
                    f"GPU {ordinal} is not among the {len(self._devices)} this process sees",
                    param="device",
                )
            self._device, self.uuid = self._devices[ordinal]
            self._driver.call("cuDevicePrimaryCtxRetain", byref(self._context), self._device)
        except DeviceError as error:
            raise SpliceError(ErrorCode.MISSING_PART, f"the CUDA driver cannot be used: {error}") from error

    @property
    def context(self) -> int:
        return self._context.value or 0

    def free_bytes(self) -> int:
        free, total = c_size_t(), c_size_t()
        self._call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value

    def allocate(self, nbytes: int) -> int:
        address = c_uint64()
        self._call("cuMemAlloc_v2", byref(address), nbytes)
        return address.value

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", address)

    def export(self, address: int) -> tuple[bytes, int]:
        base, size, handle = c_uint64(), c_size_t(), _IpcHandle()
        self._call("cuMemGetAddressRange_v2", byref(base), byref(size), address)
        self._call("cuIpcGetMemHandle", byref(handle), base.value)
        return bytes(handle.reserved), address - base.value

    def open_export(self, handle: bytes) -> int:
        if len(handle) != _HANDLE_BYTES:
            raise DeviceError(f"a handle of {len(handle)} bytes, expected {_HANDLE_BYTES}")
        address = c_uint64()
        named = _IpcHandle.from_buffer_copy(handle)
        self._call("cuIpcOpenMemHandle_v2", byref(address), named, _IPC_LAZY_ENABLE_PEER_ACCESS)
        return address.value

    def close_export(self, address: int) -> None:
        self._call("cuIpcCloseMemHandle", address)

    def can_reach(self, uuid: str) -> bool:
        for device, name in self._devices:
            if name == uuid and device != self._device:
                reachable = c_int()
                self._call("cuDeviceCanAccessPeer", byref(reachable), self._device, device)
                return bool(reachable.value)
        return True  # our own, or one this process does not see: the driver decides when it is opened

    def allocate_pinned(self, nbytes: int) -> Pinned:
        here, there = c_void_p(), c_uint64()
        self._call("cuMemHostAlloc", byref(here), nbytes, _HOST_PORTABLE_AND_MAPPED)
        self._call("cuMemHostGetDevicePointer_v2", byref(there), here, 0)
        self._hosted[there.value] = here.value or 0
        return Pinned(there.value, memoryview((c_ubyte * nbytes).from_address(here.value or 0)).cast("B"))

    def free_pinned(self, memory: Pinned) -> None:
        self._call("cuMemFreeHost", self._hosted.pop(memory.address))

    def pin(self, mapping: mmap.mmap) -> Pinned:
        place, there = ctypes.addressof(c_ubyte.from_buffer(mapping)), c_uint64()
        self._call("cuMemHostRegister_v2", place, len(mapping), _HOST_PORTABLE_AND_MAPPED)
        try:
            self._call("cuMemHostGetDevicePointer_v2", byref(there), place, 0)
        except DeviceError:
            self._call("cuMemHostUnregister", place)
            raise
        self._hosted[there.value] = place
        return Pinned(there.value, memoryview(mapping))

    def unpin(self, memory: Pinned) -> None:
        self._call("cuMemHostUnregister", self._hosted.pop(memory.address))

    def new_stream(self) -> int:
        stream = c_void_p()
        # One that does not wait for the default stream, on which a library may put the engine's work.
        self._call("cuStreamCreate", byref(stream), _STREAM_NON_BLOCKING)
        return stream.value or 0

    def end_stream(self, stream: int) -> None:
        self._call("cuStreamDestroy_v2", stream)

    def new_event(self) -> int:
        event = c_void_p()
        self._call("cuEventCreate", byref(event), _EVENT_DISABLE_TIMING)
        return event.value or 0

    def end_event(self, event: int) -> None:
        self._call("cuEventDestroy_v2", event)

    def record(self, event: int, stream: int) -> None:
        self._call("cuEventRecord", event, stream)

    def is_done(self, event: int) -> bool:
        self.enter()
        code = self._driver.library.cuEventQuery(event)
        if code == _NOT_READY:
            return False
        self._driver.check("cuEventQuery", code)
        return True

    def wait(self, stream: int, event: int) -> None:
        self._call("cuStreamWaitEvent", stream, event, 0)

    def copy(self, to: int, source: int, nbytes: int, stream: int) -> None:
        self._call("cuMemcpyAsync", to, source, nbytes, stream)

    def clear(self, address: int, nbytes: int, stream: int) -> None:
        self._call("cuMemsetD8Async", address, 0, nbytes, stream)

    def _call(self, name: str, *arguments: object) -> None:
        self.enter()
        self._driver.call(name, *arguments)

    def enter(self) -> None:
        """The driver keeps a current context for each thread.

        While the engine's thread captures a graph, other threads' calls such as cuEventQuery and cuMemAlloc would spoil
        it, and fail. Our streams have no part in it, and threads that say so are let be.
        """
        if not getattr(self._thread, "entered", False):
            self._driver.call("cuCtxSetCurrent", self._context)
            self._driver.call("cuThreadExchangeStreamCaptureMode", byref(c_int(_CAPTURE_MODE_RELAXED)))
            self._thread.entered = True
