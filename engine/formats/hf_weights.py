"""Weights of a Hugging Face directory: one `model.safetensors`, or shards with an index."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.formats import fp8, mxfp4
from engine.formats.bad_file import DOWNLOAD_AGAIN, bad_file
from engine.formats.fields import read_json_object
from engine.formats.fp8_config import Fp8Scheme
from engine.formats.safetensors_file import SafetensorsFile
from engine.formats.stored import Stored
from engine.formats.tensors import expect_shape, missing_tensor
from engine.weights import StoredMatrix, widened

_ELEMENTS: dict[str, type[np.generic]] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
"""Types that are read; numpy has no bfloat16."""
_BYTES: dict[str, type[np.generic]] = {"U8": np.uint8}
_CODES: dict[str, type[np.generic]] = {fp8.DTYPE: np.uint8}
_KINDS = {"F32": "float32", "BF16": "bfloat16"}


class SafetensorsWeights:
    """See `WeightSource`."""

    def __init__(self, directory: Path, locate: Callable[[str], Stored], scheme: Fp8Scheme | None = None) -> None:
        """Opens every file, so that a damaged one is found before anything is computed.

        `locate` says where the tensor of a canonical name lies, `scheme` how tensors in FP8 are scaled where there are
        some.
        """
        self._directory = directory
        self._locate = locate
        self._scheme = scheme
        self.files = weight_files(directory)
        self._opened = [SafetensorsFile(path) for path in self.files]
        self._file_of = {name: file for file in self._opened for name in file.names}

    def take(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """See `WeightSource.take`."""
        stored = self._locate(name)
        if stored.name + mxfp4.BLOCKS in self._file_of:
            return mxfp4.dequantised(*self._mxfp4(stored, shape))
        scheme = self._scheme_of(stored, shape)
        if scheme is not None:
            return widened(fp8.as_bfloat16(self._fp8(stored, shape, scheme)))
        return _as_float32(*self._read(stored.name, stored, stored.shape(shape)))

    def take_matrix(self, name: str, shape: tuple[int, int], kinds: frozenset[str]) -> StoredMatrix:
        """See `WeightSource.take_matrix`."""
        stored = self._locate(name)
        if stored.name + mxfp4.BLOCKS in self._file_of:
            parts = self._mxfp4(stored, shape)
            if mxfp4.KIND in kinds:
                return StoredMatrix(mxfp4.KIND, shape, mxfp4.as_gguf(*parts))
            return StoredMatrix("float32", shape, mxfp4.dequantised(*parts))
        scheme = self._scheme_of(stored, shape)
        if scheme is not None:
            return self._fp8_matrix(stored, shape, scheme, kinds)
        dtype, values = self._read(stored.name, stored, stored.shape(shape))
        kind = _KINDS.get(dtype)
        if kind is None or kind not in kinds:
            return StoredMatrix("float32", shape, _as_float32(dtype, values))
        return StoredMatrix(kind, shape, np.ascontiguousarray(values))

    def is_float32(self, name: str) -> bool:
        """See `WeightSource.is_float32`."""
        stored = self._locate(name).name
        return stored in self._file_of and self._file_of[stored].dtype(stored) == "F32"

    def expect(self, name: str, shape: tuple[int, ...]) -> None:
        """See `WeightSource.expect`."""
        stored = self._locate(name)
        if stored.name + mxfp4.BLOCKS in self._file_of:
            stored, blocks, scales = _mxfp4_shapes(stored, shape)
            self._found(stored.name + mxfp4.BLOCKS, blocks, _BYTES)
            self._found(stored.name + mxfp4.SCALES, scales, _BYTES)
            return
        scheme = self._scheme_of(stored, shape)
        if scheme is not None:
            self._found(stored.name, stored.shape(shape), _CODES)
            self._scales_of(stored, shape, scheme)
        else:
            self._found(stored.name, stored.shape(shape), _ELEMENTS)

    def unread(self) -> list[str]:
        """See `WeightSource.unread`."""
        return [name for file in self._opened for name in file.unread()]

    def release(self) -> None:
        """See `WeightSource.release`."""
        for file in self._opened:
            file.release()

    def _mxfp4(self, stored: Stored, shape: tuple[int, ...]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """(codes, scales), outputs as rows. Raises SpliceError for a scale that is no number."""
        stored, blocks_shape, scales_shape = _mxfp4_shapes(stored, shape)
        blocks = self._read(stored.name + mxfp4.BLOCKS, stored, blocks_shape, _BYTES)[1]
        name = stored.name + mxfp4.SCALES
        scales = self._read(name, stored, scales_shape, _BYTES)[1]
        mxfp4.refuse_reserved(self._file_of[name].path, name, scales)
        return blocks, scales

    def _scheme_of(self, stored: Stored, shape: tuple[int, ...]) -> Fp8Scheme | None:
        """How the tensor is scaled; None where it is not in FP8. What is no matrix is in FP8 nowhere."""
        name = stored.name
        is_fp8 = name in self._file_of and self._file_of[name].dtype(name) == fp8.DTYPE
        return self._scheme if is_fp8 and len(shape) == 2 else None

    def _fp8_matrix(
        self, stored: Stored, shape: tuple[int, int], scheme: Fp8Scheme, kinds: frozenset[str]
    ) -> StoredMatrix:
        tensor = self._fp8(stored, shape, scheme)
        input_scale = self._input_scale(stored) if scheme.activations == "static" else None
        if tensor.kind is not None and tensor.kind in kinds:
            return StoredMatrix(tensor.kind, shape, tensor.codes, tensor.scales, input_scale)
        bits = fp8.as_bfloat16(tensor)
        return (
            StoredMatrix("bfloat16", shape, bits)
            if "bfloat16" in kinds
            else StoredMatrix("float32", shape, widened(bits))
        )

    def _fp8(self, stored: Stored, shape: tuple[int, ...], scheme: Fp8Scheme) -> fp8.Fp8Tensor:
        """Codes and scales. Raises SpliceError for those that stand for no number."""
        whole = replace(stored, pick=None, is_transposed=False)
        codes = self._read(stored.name, whole, stored.shape(shape), _CODES)[1]
        file, name, found = self._scales_of(stored, shape, scheme)
        scales = _as_float32(*self._read(name, Stored(name), found))
        fp8.refuse_scales(file.path, name, scales)
        tensor = fp8.laid_out(stored, codes, scales, has_blocks=scheme.has_blocks)
        fp8.refuse_codes(self._file_of[stored.name].path, stored.name, tensor.codes)
        return tensor

    def _scales_of(
        self, stored: Stored, shape: tuple[int, ...], scheme: Fp8Scheme
    ) -> tuple[SafetensorsFile, str, tuple[int, ...]]:
        """Where the scales of a tensor lie: file, name and shape. Raises SpliceError where it has none that fit it."""
        name = next((name for end in fp8.SCALES if (name := stored.name + end) in self._file_of), None)
        if name is None:
            raise missing_tensor(self._directory, stored.name + fp8.SCALES[0 if scheme.has_blocks else 1])
        file, fitting = self._file_of[name], fp8.scale_shapes(stored, shape, has_blocks=scheme.has_blocks)
        found = file.shape(name)
        return self._found(name, found if found in fitting else fitting[0], _ELEMENTS), name, found

    def _input_scale(self, stored: Stored) -> float:
        """Of the rows that a matrix meets. Raises SpliceError where there is none, or it is no number."""
        module = stored.name.removesuffix("weight")
        name = next((name for end in fp8.INPUT_SCALES if (name := module + end) in self._file_of), None)
        if name is None:
            raise missing_tensor(self._directory, module + fp8.INPUT_SCALES[0])
        shape = self._file_of[name].shape(name)
        scale = _as_float32(*self._read(name, Stored(name), shape if shape == () else (1,)))
        fp8.refuse_scales(self._file_of[name].path, name, scale)
        return float(scale.flat[0])

    def _found(self, name: str, shape: tuple[int, ...], elements: Mapping[str, type[np.generic]]) -> SafetensorsFile:
        """The file of a tensor that has this shape and one of these types."""
        if name not in self._file_of:
            raise missing_tensor(self._directory, name)
        file = self._file_of[name]
        expect_shape(file.path, name, file.shape(name), shape)
        if file.dtype(name) not in elements:
            raise bad_file(
                file.path,
                f"tensor {name} has type {file.dtype(name)}, expected one of {', '.join(elements)}",
                "use the unquantised model",
            )
        return file

    def _read(
        self,
        name: str,
        stored: Stored,
        shape: tuple[int, ...],
        elements: Mapping[str, type[np.generic]] = _ELEMENTS,
    ) -> tuple[str, npt.NDArray[Any]]:
        """(type as the file spells it, the part wanted of the tensor `name`, which must have the shape)."""
        file = self._found(name, shape, elements)
        dtype = file.dtype(name)
        values = file.bytes(name).view(elements[dtype]).reshape(shape)
        if stored.member is not None:
            values = values[stored.member.index]
        return dtype, stored.picked(np.require(values, requirements="A"))


def _mxfp4_shapes(stored: Stored, shape: tuple[int, ...]) -> tuple[Stored, tuple[int, ...], tuple[int, ...]]:
    """(outputs as rows whichever way the unquantised tensor of that name lies, shape of its blocks, of its scales)."""
    stored = replace(stored, is_transposed=False)
    *rows, columns = stored.shape(shape)
    groups = columns // mxfp4.GROUP
    return stored, (*rows, groups, mxfp4.GROUP // 2), (*rows, groups)


def _as_float32(dtype: str, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    values = np.ascontiguousarray(values)
    return widened(values) if dtype == "BF16" else np.ascontiguousarray(values, dtype=np.float32)


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
