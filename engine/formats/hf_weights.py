"""Weights of a Hugging Face directory: one `model.safetensors`, or shards with an index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from engine.formats.bad_file import DOWNLOAD_AGAIN, bad_file
from engine.formats.fields import read_json_object
from engine.formats.stored import Stored
from engine.formats.tensors import expect_shape, missing_tensor, owned
from engine.ops.weight_matrix import WeightMatrix

_FLOAT_TYPES = ("F32", "F16", "BF16")


class SafetensorsWeights:
    """See `engine.layers.weights.Weights`."""

    def __init__(self, directory: Path, dtype: torch.dtype, locate: Callable[[str], Stored]) -> None:
        """Opens every file, so that a damaged one is found before anything is computed.

        `locate` says where the tensor of a canonical name lies.
        """
        self._directory = directory
        self._dtype = dtype
        self._locate = locate
        self.files = weight_files(directory)
        self._readers: dict[str, tuple[Path, Any]] = {}
        for path in self.files:
            try:
                reader: Any = safe_open(str(path), framework="pt")
            except (SafetensorError, OSError) as error:
                raise bad_file(path, f"not readable as safetensors ({error})", DOWNLOAD_AGAIN) from error
            self._readers.update(dict.fromkeys(reader.keys(), (path, reader)))

    def take_matrix(self, name: str, shape: tuple[int, int], kinds: frozenset[str]) -> WeightMatrix:
        """See `Weights.take_matrix`; these files have floating-point types only."""
        return self.take(name, shape)

    def take(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """See `Weights.take`."""
        stored = self._locate(name)
        if stored.name not in self._readers:
            raise missing_tensor(self._directory, stored.name)
        path, reader = self._readers[stored.name]
        view = reader.get_slice(stored.name)
        expect_shape(path, stored.name, tuple(view.get_shape()), stored.shape(shape))
        if view.get_dtype() not in _FLOAT_TYPES:
            raise bad_file(
                path,
                f"tensor {stored.name} has type {view.get_dtype()}, expected one of {', '.join(_FLOAT_TYPES)}",
                "use the unquantised model",
            )
        try:
            return owned(_picked(view, stored), self._dtype)
        except (SafetensorError, OSError) as error:
            raise bad_file(path, f"tensor {stored.name} is not readable ({error})", DOWNLOAD_AGAIN) from error


def _picked(view: Any, stored: Stored) -> torch.Tensor:
    if stored.pick is None:
        whole: torch.Tensor = view[:]
        return whole
    rows = stored.pick.contiguous()
    part: torch.Tensor = view[:][torch.from_numpy(stored.pick.rows)] if rows is None else view[rows]
    return part


def weight_files(directory: Path) -> tuple[Path, ...]:
    """The safetensors files of a model, in name order. Raises SpliceError when one is missing."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json_object(index).section("weight_map").values
        if not weight_map or not all(isinstance(file, str) and Path(file).name == file for file in weight_map.values()):
            raise bad_file(index, "field 'weight_map' does not map tensors to files beside it", DOWNLOAD_AGAIN)
        files = tuple(directory / name for name in sorted(set(weight_map.values())))
    else:
        files = tuple(sorted(directory.glob("*.safetensors")))
    if not files:
        raise bad_file(directory, "no *.safetensors file in it", "export the weights as safetensors")
    for path in files:
        if not path.is_file():
            raise bad_file(path, f"file is missing, {index.name} names it", DOWNLOAD_AGAIN)
    return files
