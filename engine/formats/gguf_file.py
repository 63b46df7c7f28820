"""A GGUF file opened and checked: its metadata as `Fields`, its tensors dequantised on demand.

Format: the GGUF specification of ggml; parsing and block dequantisation are the `gguf` package's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize

from engine.formats.bad_file import DOWNLOAD_AGAIN, bad_file
from engine.formats.fields import Fields
from engine.formats.tensors import expect_shape, missing_tensor, owned

_TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
_UNREADABLE = (OSError, ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError)
"""What the package's reader raises on damaged bytes."""


class GgufFile:
    """Metadata in `fields`; tensors under their GGUF names, for example `blk.0.attn_q.weight`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            reader = GGUFReader(path)
            self.fields = Fields(path, {name: _plain(field.contents()) for name, field in reader.fields.items()})
        except _UNREADABLE as error:
            raise bad_file(path, f"not readable as GGUF ({error or type(error).__name__})", DOWNLOAD_AGAIN) from error
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Rows first, as torch has it (GGUF stores the fastest axis first). Raises SpliceError when missing."""
        if name not in self._tensors:
            raise missing_tensor(self.path, name)
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Dequantised in float32, then rounded to `dtype`. Raises SpliceError: missing, wrong shape, unknown type."""
        expect_shape(self.path, name, self.shape(name), shape)
        tensor = self._tensors[name]
        kind = GGMLQuantizationType(tensor.tensor_type).name
        if kind not in _TYPES:
            raise bad_file(
                self.path, f"tensor {name} has type {kind}, expected one of {', '.join(_TYPES)}", "use another file"
            )
        try:
            with np.errstate(all="ignore"):  # damaged scales may overflow: that shows as logits that are not finite
                values = dequantize(np.asarray(tensor.data), tensor.tensor_type).reshape(shape)
        except (ValueError, NotImplementedError) as error:
            raise bad_file(self.path, f"tensor {name} is not readable ({error})", DOWNLOAD_AGAIN) from error
        return owned(torch.from_numpy(np.array(values, dtype=np.float32)), dtype)


def _plain(value: Any) -> Any:
    """numpy scalars to Python's."""
    return value.item() if isinstance(value, np.generic) else value
