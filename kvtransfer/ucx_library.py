"""Finds libucp before `kvtransfer._ucx` needs it: in the package libucx, or where the system's loader looks."""

from __future__ import annotations

import importlib.util
from types import ModuleType


def load() -> ModuleType:
    """The native module; raises ImportError that says what is missing and how to get it.

    The package can be told to prefer a system's UCX, which has RDMA (RAPIDS_LIBUCX_PREFER_SYSTEM_LIBRARY=1).
    """
    if importlib.util.find_spec("kvtransfer._ucx") is None:
        raise ImportError("built without UCX: pip install libucx-cu12, or install UCX, and build again")
    if importlib.util.find_spec("libucx") is not None:
        import libucx  # noqa: PLC0415

        libucx.load_library()
    from kvtransfer import _ucx  # noqa: PLC0415

    return _ucx
