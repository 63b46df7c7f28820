"""A GGUF file opened and checked: its metadata as `Fields`, its tensors dequantised on demand by the `gguf` package."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from engine.formats.bad_file import DOWNLOAD_AGAIN, bad_file
from engine.formats.fields import Fields
from engine.formats.gguf_header import TensorInfo, read_header
from engine.formats.tensors import expect_shape, missing_tensor, owned

_TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
_NUMPY_TYPES = {"F32": np.float32, "F16": np.float16}


class GgufFile:
    """Metadata in `fields`; tensors under their GGUF names, for example `blk.0.attn_q.weight`."""

    def __init__(self, path: Path) -> None:
        """Raises SpliceError when the header is damaged or the file too short for a tensor it lists."""
        self.path = path
        try:
            self._data = np.memmap(path, mode="r")
            header = read_header(self._data.data)
        except (OSError, ValueError) as error:
            raise bad_file(path, f"not readable as GGUF: {error}", DOWNLOAD_AGAIN) from error
        self.fields = Fields(path, header.pairs)
        self._tensors = header.tensors

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Rows first, as torch has it. Raises SpliceError when the tensor is missing."""
        if name not in self._tensors:
            raise missing_tensor(self.path, name)
        return self._tensors[name].shape

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Dequantised in float32, then rounded to `dtype`.

        Raises SpliceError: missing, another shape, a type that is not supported, or bytes beyond the file's end.
        """
        expect_shape(self.path, name, self.shape(name), shape)
        info = self._tensors[name]
        kind = self._known(name, info)
        with np.errstate(all="ignore"):  # damaged scales may overflow: that shows as logits that are not finite
            values = dequantize(self._stored(name, info, kind), kind).reshape(shape)
        return owned(torch.from_numpy(np.array(values, dtype=np.float32)), dtype)

    def kind(self, name: str) -> str:
        """The tensor's type as ggml names it, in lower case. Raises SpliceError as `tensor` does."""
        self.shape(name)
        return self._known(name, self._tensors[name]).name.lower()

    def blocks(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """A quantised tensor as stored, `[rows, bytes of a row]`: a view of the mapped file. Raises as `tensor`."""
        expect_shape(self.path, name, self.shape(name), shape)
        info = self._tensors[name]
        start, end = self._span(name, info, self._known(name, info))
        return self._data[start:end].reshape(shape[0], -1)

    def _known(self, name: str, info: TensorInfo) -> GGMLQuantizationType:
        known = {kind.value: kind for kind in GGMLQuantizationType}
        kind = known.get(info.kind)
        if kind is None or kind.name not in _TYPES:
            shown = info.kind if kind is None else kind.name
            raise bad_file(
                self.path, f"tensor {name} has type {shown}, expected one of {', '.join(_TYPES)}", "use another file"
            )
        return kind

    def _stored(self, name: str, info: TensorInfo, kind: GGMLQuantizationType) -> npt.NDArray[Any]:
        """The tensor as `gguf.quants.dequantize` wants it: floats by shape, blocks as `[rows, bytes]`."""
        start, end = self._span(name, info, kind)
        # A copy, because a tensor's offset need not be aligned for its element type in memory.
        raw = np.array(self._data[start:end])
        if kind.name in _NUMPY_TYPES:
            return raw.view(_NUMPY_TYPES[kind.name]).reshape(info.shape)
        return raw.reshape(*info.shape[:-1], -1)

    def _span(self, name: str, info: TensorInfo, kind: GGMLQuantizationType) -> tuple[int, int]:
        """First byte and the one after the last; raises SpliceError when the file does not hold them."""
        block_elements, block_bytes = GGML_QUANT_SIZES[kind]
        if info.shape[-1] % block_elements:
            raise bad_file(
                self.path,
                f"tensor {name} has rows of {info.shape[-1]} elements, expected a multiple of {block_elements}",
                DOWNLOAD_AGAIN,
            )
        end = info.offset + math.prod(info.shape) // block_elements * block_bytes
        if end > len(self._data):
            raise bad_file(
                self.path,
                f"tensor {name} reaches to byte {end}, the file ends at {len(self._data)}",
                DOWNLOAD_AGAIN,
            )
        return info.offset, end
