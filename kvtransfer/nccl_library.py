"""NCCL's dozen calls that a hand-off needs, from libnccl.so.2: that of the package nvidia-nccl, or the system's.

Called through ctypes, as CUDA's driver is: calls let go of the interpreter lock. CuPy's face cannot make a communicator
that does not block, and one that blocks in its making cannot be given up when the peer dies. Layouts and values are
those of nccl.h, 2.17 to 2.32. Compiled, not yet run on a GPU: tests call a library of their own.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_int, c_size_t, c_ubyte, c_uint, c_void_p
from pathlib import Path
from typing import Protocol

LIBRARY = "libnccl.so.2"
UNIQUE_ID_BYTES = 128
_SUCCESS, _IN_PROGRESS = 0, 7
_UINT8 = 1
_OLDEST = 21700
"""From here on the settings below are all there; what came later takes its default."""
_MAGIC = 0xCAFEBEEF
_UNDEFINED = -(1 << 31)


class NcclError(Exception):
    """NCCL refused a call, or reports that the peer or the path to it failed. In its own words."""


class Nccl(Protocol):
    """Communicators of two ranks. One thread uses one at a time; the device is the thread's current one."""

    def new_id(self) -> bytes:
        """Names one communicator to both ranks; the process that made it listens until both have joined."""

    def join(self, unique_id: bytes, rank: int) -> int:
        """Begins to make the communicator: used and waited for by `is_settled`, ended by `abort` in any state."""

    def is_settled(self, communicator: int) -> bool:
        """Whether all that was begun has reached its stream. Raises NcclError once anything has failed."""

    def send(self, communicator: int, peer: int, spans: Sequence[int], nbytes: int, stream: int) -> None:
        """Launches, as one group, `nbytes` from each address; on the stream once `is_settled`."""

    def receive(self, communicator: int, peer: int, spans: Sequence[int], nbytes: int, stream: int) -> None:
        """The same to each address: in order, as many as are sent."""

    def abort(self, communicator: int) -> None:
        """Ends what runs on the device too, and frees the communicator. Needs no word of the peer."""


class _UniqueId(ctypes.Structure):
    """Passed by value."""

    _fields_ = (("internal", c_ubyte * UNIQUE_ID_BYTES),)


class NcclConfig(ctypes.Structure):
    """`ncclConfig_t` up to what 2.17 knew of it: the library reads as much as `size` says."""

    _fields_ = (
        ("size", c_size_t),
        ("magic", c_uint),
        ("version", c_uint),
        *((name, c_int) for name in ("blocking", "cgaClusterSize", "minCTAs", "maxCTAs")),
        ("netName", c_char_p),
    )


_SIGNATURES: dict[str, tuple[type, ...]] = {
    "ncclGetVersion": (c_void_p,),
    "ncclGetUniqueId": (c_void_p,),
    "ncclCommInitRankConfig": (c_void_p, c_int, _UniqueId, c_int, c_void_p),
    "ncclCommGetAsyncError": (c_void_p, c_void_p),
    "ncclCommAbort": (c_void_p,),
    "ncclGroupStart": (),
    "ncclGroupEnd": (),
    "ncclSend": (c_void_p, c_size_t, c_int, c_int, c_void_p, c_void_p),
    "ncclRecv": (c_void_p, c_size_t, c_int, c_int, c_void_p, c_void_p),
    "ncclGetErrorString": (c_int,),
    "ncclGetLastError": (c_void_p,),
}


class NcclLibrary:
    """`Nccl` over the library itself."""

    def __init__(self, path: str = "") -> None:
        """Raises NcclError where there is none, or none that can be used."""
        path = path or _found()
        try:
            self._library = ctypes.CDLL(path)
            for name, arguments in _SIGNATURES.items():
                getattr(self._library, name).argtypes = arguments
        except (OSError, AttributeError) as error:
            raise NcclError(f"no NCCL ({error}): pip install nvidia-nccl-cu13, or -cu12, as torch's CUDA is") from None
        for name in ("ncclGetErrorString", "ncclGetLastError"):
            getattr(self._library, name).restype = c_char_p
        version = c_int()
        self._call("ncclGetVersion", byref(version))
        self.version = version.value
        if self.version < _OLDEST:
            raise NcclError(f"{path} is NCCL {self.version}, expected {_OLDEST} or later")

    def new_id(self) -> bytes:
        unique_id = _UniqueId()
        self._call("ncclGetUniqueId", byref(unique_id))
        return bytes(unique_id.internal)

    def join(self, unique_id: bytes, rank: int) -> int:
        if len(unique_id) != UNIQUE_ID_BYTES:
            raise NcclError(f"an id of {len(unique_id)} bytes, expected {UNIQUE_ID_BYTES}")
        config = NcclConfig(ctypes.sizeof(NcclConfig), _MAGIC, _OLDEST, 0, _UNDEFINED, _UNDEFINED, _UNDEFINED, None)
        communicator = c_void_p()
        named = _UniqueId.from_buffer_copy(unique_id)
        self._call("ncclCommInitRankConfig", byref(communicator), 2, named, rank, byref(config))
        return communicator.value or 0

    def is_settled(self, communicator: int) -> bool:
        state = c_int()
        self._call("ncclCommGetAsyncError", communicator, byref(state))
        if state.value == _IN_PROGRESS:
            return False
        self._check("ncclCommGetAsyncError", state.value)
        return True

    def send(self, communicator: int, peer: int, spans: Sequence[int], nbytes: int, stream: int) -> None:
        self._group("ncclSend", communicator, peer, spans, nbytes, stream)

    def receive(self, communicator: int, peer: int, spans: Sequence[int], nbytes: int, stream: int) -> None:
        self._group("ncclRecv", communicator, peer, spans, nbytes, stream)

    def abort(self, communicator: int) -> None:
        self._call("ncclCommAbort", communicator)

    def _group(self, name: str, communicator: int, peer: int, spans: Sequence[int], nbytes: int, stream: int) -> None:
        self._call("ncclGroupStart")
        try:
            for span in spans:
                self._call(name, span, nbytes, _UINT8, peer, communicator, stream)
        finally:  # a group that was begun is ended, or it swallows the thread's next calls
            self._call("ncclGroupEnd")

    def _call(self, name: str, *arguments: object) -> None:
        self._check(name, getattr(self._library, name)(*arguments))

    def _check(self, name: str, code: int) -> None:
        if code not in (_SUCCESS, _IN_PROGRESS):
            text = (self._library.ncclGetErrorString(code) or b"").decode()
            last = (self._library.ncclGetLastError(None) or b"").decode()
            raise NcclError(f"{name}: {text}{f' ({last})' if last else ''}")


def why_missing() -> str:
    """Empty if NCCL can be loaded, otherwise what is missing and the remedy. Needs no GPU."""
    try:
        NcclLibrary()
    except NcclError as error:
        return str(error)
    return ""


def keep_to_loopback() -> None:
    """NCCL's own sockets, which know no capability, stay on the loopback like ours; before its first call.

    It is told by its environment, which has no other place for this; what the operator has set wins.
    """
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")


def _found() -> str:
    """The package's, which is torch's too, or what the loader finds."""
    try:
        package = importlib.util.find_spec("nvidia.nccl")
    except ModuleNotFoundError:
        package = None
    places = package.submodule_search_locations if package is not None else None
    for place in places or ():
        path = Path(place) / "lib" / LIBRARY
        if path.exists():
            return str(path)
    return LIBRARY
