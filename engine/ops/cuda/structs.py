"""The structures of `csrc/cuda/splice_cuda.h`, field by field."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p

ABI = 3
"""`SPLICE_CUDA_ABI` of the header these were written from."""

__all__ = ["ABI", "Attention", "Copy", "Draws", "Gate", "Gemm", "Kv", "Norm", "Pool", "Rope"]


class Norm(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("y", "x", "residual", "weight")),
        *((name, c_int64) for name in ("rows", "size", "x_stride")),
        ("weight_is_float32", c_int32),
        ("eps", c_float),
    )


class Gate(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("y", "x")),
        *((name, c_int64) for name in ("rows", "size", "x_stride")),
        ("activation", c_int32),
    )


class Kv(Structure):
    _fields_ = (
        ("data", c_void_p),
        *((name, c_int64) for name in ("layers", "kv_heads", "block_tokens", "head_dim")),
    )


class Rope(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("out", "q", "k", "v")),
        *((name, c_int64) for name in ("q_stride", "k_stride", "v_stride")),
        *((name, c_void_p) for name in ("q_norm", "k_norm", "cos_sin", "positions", "slots")),
        *((name, c_int64) for name in ("tokens", "q_heads", "rotary_dim", "layer")),
        ("kv", Kv),
        ("norm_is_float32", c_int32),
        ("eps", c_float),
    )


class Attention(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("out", "q")),
        ("kv", Kv),
        *((name, c_void_p) for name in ("block_tables", "query_starts", "starts", "sinks", "workspace")),
        *((name, c_int64) for name in ("layer", "table_stride", "rows", "sequences", "q_heads", "window")),
        *((name, c_int64) for name in ("max_context", "max_query")),
        ("scale", c_float),
        ("softcap", c_float),
    )


class Draws(Structure):
    _fields_ = (
        ("logits", c_void_p),
        *((name, c_int64) for name in ("rows", "size", "stride")),
        *(
            (name, c_void_p)
            for name in ("temperature", "min_p", "top_p", "top_k", "seed", "choice", "position", "tokens")
        ),
    )


class Pool(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("data", "ids")),
        *((name, c_int64) for name in ("layers", "heads", "first_layer", "first_head")),
    )


class Copy(Structure):
    _fields_ = (
        *((name, Pool) for name in ("to", "source")),
        *((name, c_int64) for name in ("blocks", "layers", "planes", "heads", "span_bytes")),
    )


class Gemm(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("y", "x", "w", "bias")),
        *((name, c_int64) for name in ("m", "n", "k", "x_stride", "w_stride", "y_stride")),
        *((name, c_int32) for name in ("y_is_float32", "tile")),
    )
