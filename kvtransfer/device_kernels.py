"""The kernels of a hand-off, from the library the build puts beside the engine: its path comes from above."""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_int64, c_void_p
from pathlib import Path

from kvtransfer.device_runtime import DeviceError
from kvtransfer.kv_checksum import BlockRows
from wire.errors import ErrorCode, SpliceError

ABI = 3
"""`SPLICE_CUDA_ABI` of csrc/cuda/splice_cuda.h, from which the structures here are written."""
_FUNCTIONS = ("kv_copy", "kv_checksum", "kv_checksum_workspace")


class _Pool(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("data", "ids")),
        *((name, c_int64) for name in ("layers", "heads", "first_layer", "first_head")),
    )


class _Copy(Structure):
    _fields_ = (
        *((name, _Pool) for name in ("to", "source")),
        *((name, c_int64) for name in ("blocks", "layers", "planes", "heads", "span_bytes")),
    )


class _Checksum(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("sums", "data", "ids", "workspace")),
        *((name, c_int64) for name in ("blocks", "block_bytes")),
        ("tokens", c_void_p),
        *((name, c_int64) for name in ("row_bytes", "block_tokens")),
    )


class CudaBlockKernels:
    """`device_runtime.BlockKernels` over `libsplice_cuda`. `spans` are how many parts a block is copied in: its
    `[layers, planes, heads]`, each a span that one block of threads copies."""

    def __init__(self, path: Path, spans: int) -> None:
        """Raises SpliceError(MISSING_PART) where there is no library, or none that goes with this file."""
        self._spans = spans
        try:
            self._library = ctypes.CDLL(str(path))
            abi = self._library.splice_cuda_abi()
            missing = [name for name in _FUNCTIONS if not hasattr(self._library, f"splice_cuda_{name}")]
        except (OSError, AttributeError) as error:
            raise SpliceError(
                ErrorCode.MISSING_PART, f"no CUDA kernels at {path} ({error}); build them where nvcc is: make cuda"
            ) from None
        if abi != ABI or missing:
            raise SpliceError(
                ErrorCode.MISSING_PART,
                f"{path} has ABI {abi} and lacks {missing or 'nothing'}, expected ABI {ABI}: build it again: make cuda",
            )
        self._library.splice_cuda_error.restype = ctypes.c_char_p
        self._library.splice_cuda_kv_checksum_workspace.restype = c_int64
        self._library.splice_cuda_kv_checksum_workspace.argtypes = (c_int64, c_int64)

    def copy_blocks(
        self, to: int, to_ids: int, source: int, source_ids: int, blocks: int, block_bytes: int, stream: int
    ) -> None:
        span_bytes, rest = divmod(block_bytes, self._spans)
        if rest:
            raise DeviceError(f"kv_copy: blocks of {block_bytes} bytes, expected a multiple of {self._spans} spans")
        pools = (_Pool(to, to_ids, 1, self._spans, 0, 0), _Pool(source, source_ids, 1, self._spans, 0, 0))
        self._call("kv_copy", _Copy(*pools, blocks, 1, 1, self._spans, span_bytes), stream)

    def checksum_workspace(self, blocks: int, block_bytes: int) -> int:
        return int(self._library.splice_cuda_kv_checksum_workspace(blocks, block_bytes))

    def checksum(
        self,
        sums: int,
        data: int,
        ids: int,
        blocks: int,
        block_bytes: int,
        workspace: int,
        stream: int,
        tokens: int = 0,
        rows: BlockRows | None = None,
    ) -> None:
        form = (None, 0, 0) if rows is None else (tokens, rows.row_bytes, rows.block_tokens)
        self._call("kv_checksum", _Checksum(sums, data, ids, workspace, blocks, block_bytes, *form), stream)

    def _call(self, name: str, arguments: Structure, stream: int) -> None:
        function = getattr(self._library, f"splice_cuda_{name}")
        if function(ctypes.byref(arguments), c_void_p(stream)):
            raise DeviceError(self._library.splice_cuda_error().decode())
