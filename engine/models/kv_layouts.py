"""What a decoder's KV blocks look like."""

from __future__ import annotations

from typing import cast

from engine.models.needed_tensors import needed_tensors
from engine.spec import ModelSpec
from engine.weights import WeightSource
from wire.errors import ErrorCode, SpliceError
from wire.kv_layout import KVDtype, KVLayout

_PLAIN = ("float32", "bfloat16")
_SCALED = ("int8", "fp8_e4m3")


def auto_kv_dtype(spec: ModelSpec, dtype: str, weights: WeightSource) -> KVDtype:
    """What a cache has unless asked otherwise: 32 bits only where activations (`dtype`) and every matrix have as many.

    Keys and values are no more exact than the numbers they are made of, and attention over long sequences takes as long
    as reading them does: bfloat16 halves that, and the memory, and what a hand-off moves. float32 stays bit for bit
    what the model computes.
    """
    matrices = (tensor.name for tensor in needed_tensors(spec) if len(tensor.shape) == 2)
    return "float32" if dtype == "float32" and all(map(weights.is_float32, matrices)) else "bfloat16"


def decoder_kv_layout(spec: ModelSpec, auto: str, block_tokens: int, kv_dtype: str) -> KVLayout:
    """See `CausalLM.kv_layout`."""
    dtype = auto if kv_dtype == "auto" else kv_dtype
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
