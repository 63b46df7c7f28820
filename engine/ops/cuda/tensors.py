"""What a tensor must be before its address goes to a kernel. Nothing here reads or moves an element."""

from __future__ import annotations

import torch

from wire.errors import ErrorCode, SpliceError


def refuse(name: str, found: object, expected: str) -> SpliceError:
    """What to raise for an argument `name`."""
    return SpliceError(ErrorCode.INVALID_REQUEST, f"{name} is {found}, expected {expected}", param=name)


def require(
    name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int | None, ...], device_type: str, align: int = 1
) -> int:
    """The address of a contiguous `tensor` of this dtype and shape (None: any size), aligned to `align` bytes.

    Raises SpliceError that names the argument and what was expected of it.
    """
    if not tensor.is_contiguous():
        raise refuse(name, f"strided {tensor.stride()} over {tuple(tensor.shape)}", "a contiguous tensor")
    return _checked(name, tensor, dtype, shape, device_type, align)


def require_rows(
    name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int | None, ...], device_type: str, align: int = 1
) -> tuple[int, int]:
    """As `require`, but rows may have gaps between them: the address, and the elements from one row to the next, whose
    bytes are a multiple of `align`."""
    expected = 1
    for size, stride in zip(reversed(tensor.shape[1:]), reversed(tensor.stride()[1:]), strict=True):
        if size != 1 and stride != expected:
            raise refuse(name, f"strided {tensor.stride()} over {tuple(tensor.shape)}", "contiguous within each row")
        expected *= size
    stride = tensor.stride(0) if tensor.shape[0] > 1 else expected
    if stride * tensor.element_size() % align:
        raise refuse(name, f"{stride} elements from row to row", f"a multiple of {align} bytes")
    return _checked(name, tensor, dtype, shape, device_type, align), stride


def require_strides(
    name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int | None, ...], device_type: str, align: int = 1
) -> tuple[int, tuple[int, ...]]:
    """As `require`, but only elements of the last dimension must be neighbours: the address, and the elements from one
    to the next of every other dimension, whose bytes are multiples of `align`."""
    if tensor.shape[-1] != 1 and tensor.stride(-1) != 1:
        raise refuse(name, f"strided {tensor.stride()} over {tuple(tensor.shape)}", "neighbours in the last dimension")
    strides = tuple(
        stride if size > 1 else 0 for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True)
    )
    for stride in strides:
        if stride * tensor.element_size() % align:
            raise refuse(name, f"strided {tensor.stride()}", f"multiples of {align} bytes")
    return _checked(name, tensor, dtype, shape, device_type, align), strides


def _checked(
    name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int | None, ...], device_type: str, align: int
) -> int:
    if tensor.device.type != device_type:
        raise refuse(name, f"on {tensor.device}", f"a tensor on {device_type}")
    if tensor.dtype != dtype:
        raise refuse(name, f"of {tensor.dtype}", str(dtype))
    found = tensor.shape
    agrees = len(found) == len(shape)
    if agrees:
        for have, want in zip(found, shape, strict=True):
            if want is not None and have != want:
                agrees = False
    if not agrees:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise refuse(name, f"of shape {tuple(found)}", f"[{wanted}]")
    address = tensor.data_ptr()
    if address % align:
        raise refuse(name, f"at address {address:#x}", f"aligned to {align} bytes")
    return address
