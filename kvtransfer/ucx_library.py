"""Finds libucp before `kvtransfer._ucx` needs it: in the package libucx, or where the system's loader looks."""

from __future__ import annotations

import importlib.util


def why_missing() -> str:
    """Loads the library; empty if the native module can be imported now, otherwise what is missing and the remedy.

    The package can be told to prefer a system's UCX, which has RDMA (RAPIDS_LIBUCX_PREFER_SYSTEM_LIBRARY=1).
    """
    if importlib.util.find_spec("kvtransfer._ucx") is None:
        return "built without UCX: pip install libucx-cu12, or install UCX, and build again"
    try:
        if importlib.util.find_spec("libucx") is not None:
            import libucx  # noqa: PLC0415 (not everywhere there)

            libucx.load_library()
        import kvtransfer._ucx  # noqa: F401, PLC0415 (whether it can be)
    except (ImportError, OSError) as error:
        return f"libucp cannot be loaded ({error}): pip install libucx-cu12, or install UCX"
    return ""


def why_no_cuda() -> str:
    """The same for memory of GPUs. Loads what UCX brings for them."""
    reason = why_missing()
    if reason:
        return reason
    from kvtransfer import _ucx  # noqa: PLC0415 (not everywhere there)

    try:
        if _ucx.supports_cuda():
            return ""
    except _ucx.UcxError as error:
        return f"UCX cannot start: {error}"
    return "this UCX knows no memory of GPUs: it was built without CUDA, or its module for it finds no driver"
