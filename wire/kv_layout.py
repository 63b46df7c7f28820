"""What a KV block looks like in memory, as a value two workers can compare."""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

KVDtype = Literal["float32", "bfloat16", "float16", "int8", "fp8_e4m3"]
_ITEM_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "fp8_e4m3": 1}
_SCALE_BYTES: dict[str, int] = {"int8": 4, "fp8_e4m3": 4}

BLOCK_ORDER = "layer,kv,head,token,dim"
"""Order within a block: one contiguous span; a range of layers is contiguous in it; heads can be sliced."""


class KVLayout(msgspec.Struct, frozen=True, kw_only=True):
    """Shape of one KV block; a pool is `[num_blocks]` of these, one after another."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_tokens: int
    dtype: KVDtype
    order: str = BLOCK_ORDER
    planes: int = 2
    """What a token has in a layer: 2 for K and V; 1 for a latent, from which both are made."""

    @property
    def block_shape(self) -> tuple[int, int, int, int, int]:
        """`[num_layers, planes, num_kv_heads, block_tokens, head_dim]`; of two planes the first is K, the second V."""
        return (self.num_layers, self.planes, self.num_kv_heads, self.block_tokens, self.head_dim)

    @property
    def is_scaled(self) -> bool:
        """Whether every token has a float32 scale a head, in each plane."""
        return self.dtype in _SCALE_BYTES

    @property
    def plane_bytes(self) -> int:
        """One head's `[block_tokens, head_dim]`; if `is_scaled`, the float32 scales of its tokens follow."""
        token_bytes = self.head_dim * _ITEM_BYTES[self.dtype] + _SCALE_BYTES.get(self.dtype, 0)
        return self.block_tokens * token_bytes

    @property
    def layer_bytes(self) -> int:
        return self.planes * self.num_kv_heads * self.plane_bytes

    @property
    def block_bytes(self) -> int:
        return self.num_layers * self.layer_bytes

    @property
    def layout_id(self) -> str:
        """32 hexadecimal digits; equal exactly when every field is."""
        return hashlib.blake2b(msgspec.msgpack.encode(self), digest_size=16).hexdigest()


def compat_id(layout: KVLayout, model_digest: str, numerics_id: str) -> str:
    """Identity of a prefill/decode pair: KV computed under one id may be read only under the same id.

    `model_digest` identifies weights and architecture, `numerics_id` the arithmetic (instruction set, kernels, dtype).
    """
    text = "\0".join((layout.layout_id, model_digest, numerics_id))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
