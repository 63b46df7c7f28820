"""What a decoder's KV blocks look like."""

from __future__ import annotations

from typing import cast

from engine.spec import ModelSpec
from wire.errors import ErrorCode, SpliceError
from wire.kv_layout import KVDtype, KVLayout

_KV_DTYPES = ("float32", "bfloat16")
NATIVE_KV_DTYPES = (*_KV_DTYPES, "int8")


def decoder_kv_layout(
    spec: ModelSpec, model_dtype: str, block_tokens: int, kv_dtype: str, kinds: tuple[str, ...] = _KV_DTYPES
) -> KVLayout:
    """See `CausalLM.kv_layout`. `kinds` are those the model computes with."""
    dtype = model_dtype if kv_dtype == "auto" else kv_dtype
    if dtype not in kinds:
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            f"KV cache dtype {kv_dtype!r} is not supported: by this model: use auto, {' or '.join(kinds)}",
            param="kv_cache_dtype",
        )
    planes, heads, head_dim = spec.kv_shape
    return KVLayout(
        num_layers=spec.num_layers,
        num_kv_heads=heads,
        head_dim=head_dim,
        block_tokens=block_tokens,
        dtype=cast(KVDtype, dtype),
        planes=planes,
    )
