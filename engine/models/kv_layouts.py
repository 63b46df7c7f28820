"""What a decoder's KV blocks look like."""

from __future__ import annotations

from typing import cast

from engine.spec import ModelSpec
from wire.errors import ErrorCode, SpliceError
from wire.kv_layout import KVDtype, KVLayout

_PLAIN = ("float32", "bfloat16")
_SCALED = ("int8", "fp8_e4m3")


def decoder_kv_layout(spec: ModelSpec, model_dtype: str, block_tokens: int, kv_dtype: str) -> KVLayout:
    """See `CausalLM.kv_layout`."""
    dtype = model_dtype if kv_dtype == "auto" else kv_dtype
    planes, heads, head_dim = spec.kv_shape
    # Scales stand behind whole words of numbers; latents are no heads, and nothing reads them scaled.
    kinds = (*_PLAIN, *_SCALED) if planes == 2 and head_dim % 4 == 0 else _PLAIN
    if dtype not in kinds:
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            f"KV cache dtype {kv_dtype!r} is not supported by this model: use auto, {' or '.join(kinds)}",
            param="kv_cache_dtype",
        )
    return KVLayout(
        num_layers=spec.num_layers,
        num_kv_heads=heads,
        head_dim=head_dim,
        block_tokens=block_tokens,
        dtype=cast(KVDtype, dtype),
        planes=planes,
    )
