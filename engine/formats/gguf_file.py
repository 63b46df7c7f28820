"""A GGUF file opened and checked: its metadata as `Fields`, its tensors as stored or as float32."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.formats import mxfp4
from engine.formats.bad_file import DOWNLOAD_AGAIN, bad_file
from engine.formats.fields import Fields
from engine.formats.gguf_header import TensorInfo, read_header
from engine.formats.gguf_types import TYPES, GgufType
from engine.formats.mapped_file import MappedFile
from engine.formats.tensors import expect_shape, missing_tensor
from engine.weights import widened


class GgufFile:
    """Metadata in `fields`; tensors under their GGUF names, for example `blk.0.attn_q.weight`."""

    def __init__(self, path: Path) -> None:
        """Raises SpliceError when the header is damaged."""
        self.path = path
        try:
            self._file = MappedFile(path)
            header = read_header(self._file.bytes.data)
        except (OSError, ValueError) as error:
            raise bad_file(path, f"not readable as GGUF: {error}", DOWNLOAD_AGAIN) from error
        self.fields = Fields(path, header.pairs)
        self._tensors = header.tensors
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Rows first. Raises SpliceError when the tensor is missing."""
        if name not in self._tensors:
            raise missing_tensor(self.path, name)
        return self._tensors[name].shape

    def tensor(self, name: str, shape: tuple[int, ...], member: int | None = None) -> npt.NDArray[np.float32]:
        """Its values, exact or dequantised in float32; of a tensor of `shape`, `[member]` or the whole of it.

        Raises SpliceError: missing, another shape, a type that is not supported, bytes beyond the file's end, or an
        MXFP4 scale that is no number.
        """
        info = self._info(name, shape, member)
        kind = self._known(name, info)
        # A copy, because a tensor's offset need not be aligned for its element type in memory.
        return _values(np.array(self._numbers(name, info, kind)), kind, info)

    def kind(self, name: str) -> str:
        """The tensor's type as ggml names it, in lower case. Raises SpliceError as `tensor` does."""
        self.shape(name)
        return self._known(name, self._tensors[name]).name

    def blocks(self, name: str, shape: tuple[int, ...], member: int | None = None) -> npt.NDArray[np.uint8]:
        """A matrix as stored, `[rows, bytes of a row]`: a view of the mapped file. As `tensor`."""
        info = self._info(name, shape, member)
        return self._numbers(name, info, self._known(name, info)).reshape(info.shape[0], -1)

    def expect(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises SpliceError as `tensor` does."""
        expect_shape(self.path, name, self.shape(name), shape)
        info = self._tensors[name]
        self._stored(name, info, self._known(name, info))

    def check_tensors(self) -> None:
        """Raises SpliceError as `tensor` would for any of them."""
        for name, info in self._tensors.items():
            self._stored(name, info, self._known(name, info))

    def unread(self) -> list[str]:
        """See `WeightSource.unread`."""
        return [name for name in self._tensors if name not in self._read]

    def release(self) -> None:
        """See `WeightSource.release`."""
        self._file.release()

    def _info(self, name: str, shape: tuple[int, ...], member: int | None) -> TensorInfo:
        """Where the tensor, or its member, lies."""
        expect_shape(self.path, name, self.shape(name), shape)
        self._read.add(name)
        info = self._tensors[name]
        if member is None:
            return info
        size = len(self._stored(name, info, self._known(name, info))) // info.shape[0]
        return replace(info, shape=info.shape[1:], offset=info.offset + member * size)

    def _known(self, name: str, info: TensorInfo) -> GgufType:
        kind = TYPES.get(info.kind)
        if kind is None:
            names = ", ".join(each.name.upper() for each in TYPES.values())
            raise bad_file(
                self.path,
                f"tensor {name} has type {_type_name(info.kind)}, expected one of {names}",
                "use another file",
            )
        return kind

    def _numbers(self, name: str, info: TensorInfo, kind: GgufType) -> npt.NDArray[np.uint8]:
        """`_stored`, for who computes with it."""
        raw = self._stored(name, info, kind)
        if kind.name == mxfp4.KIND:
            mxfp4.refuse_reserved(self.path, name, mxfp4.scales_of_gguf(raw))
        return raw

    def _stored(self, name: str, info: TensorInfo, kind: GgufType) -> npt.NDArray[np.uint8]:
        """The tensor's bytes; raises SpliceError when the file does not hold them."""
        if not info.shape or info.shape[-1] % kind.block_elements:
            raise bad_file(
                self.path,
                f"tensor {name} has shape {list(info.shape)}, expected rows of a multiple of {kind.block_elements}",
                DOWNLOAD_AGAIN,
            )
        end = info.offset + math.prod(info.shape) // kind.block_elements * kind.block_bytes
        if end > len(self._file):
            raise bad_file(
                self.path,
                f"tensor {name} reaches to byte {end}, the file ends at {len(self._file)}",
                DOWNLOAD_AGAIN,
            )
        return self._file.bytes[info.offset : end]


def _values(raw: npt.NDArray[np.uint8], kind: GgufType, info: TensorInfo) -> npt.NDArray[np.float32]:
    match kind.name:
        case "f32":
            return raw.view(np.float32).reshape(info.shape)
        case "f16":
            return raw.view(np.float16).astype(np.float32).reshape(info.shape)
        case "bf16":
            return widened(raw.view(np.uint16)).reshape(info.shape)
    from gguf import GGMLQuantizationType  # noqa: PLC0415 (of no use for weights that are multiplied packed)
    from gguf.quants import dequantize  # noqa: PLC0415

    rows: Any = raw.reshape(*info.shape[:-1], -1)
    with np.errstate(all="ignore"):  # damaged scales may overflow: that shows as logits that are not finite
        values = dequantize(rows, GGMLQuantizationType(info.kind))
    return np.ascontiguousarray(values, dtype=np.float32).reshape(info.shape)


def _type_name(kind: int) -> str:
    from gguf import GGMLQuantizationType  # noqa: PLC0415 (for the words of an error only)

    return {each.value: str(each.name) for each in GGMLQuantizationType}.get(kind, str(kind))
