"""A plain spec to vary, and random weights for any spec, some of them quantised, as a file would give them."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from engine.rope_spec import RopeSpec
from engine.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec
from engine.weights import StoredMatrix

ATTENTION = AttentionSpec(num_heads=6, num_kv_heads=2, head_dim=32, rope=RopeSpec(theta=1e4), scale=32**-0.5)
LAYER = LayerSpec(attention=ATTENTION, mlp=MlpSpec(intermediate_size=160))
MODEL = ModelSpec(
    architecture="drawn",
    hidden_size=96,
    vocab_size=200,
    max_positions=400,
    rms_norm_eps=1e-6,
    layers=(LAYER, LAYER),
    tie_embeddings=True,
)


class DrawnWeights:
    """See `WeightSource`: a tensor is drawn from its name, so it is the same however often it is taken."""

    def __init__(self, kind_of: Callable[[str], str]) -> None:
        """`kind_of` gives the kind a matrix is stored in, by its name."""
        self._kind_of = kind_of

    def take(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        generator = np.random.default_rng(zlib.crc32(name.encode()))
        drawn = generator.standard_normal(shape, dtype=np.float32)
        return 1 + drawn * np.float32(0.1) if "norm" in name else drawn * np.float32(shape[-1] ** -0.5)

    def take_matrix(self, name: str, shape: tuple[int, int], kinds: frozenset[str]) -> StoredMatrix:
        kind = self._kind_of(name)
        values = self.take(name, shape)
        if kind == "float32":
            return StoredMatrix(kind, shape, values)
        if kind == "bfloat16":
            return StoredMatrix(kind, shape, (values.view(np.uint32) >> 16).astype(np.uint16))
        blocks = quantize(values, GGMLQuantizationType[kind.upper()])
        if kind in kinds:
            return StoredMatrix(kind, shape, blocks)
        return StoredMatrix("float32", shape, dequantize(blocks, GGMLQuantizationType[kind.upper()]))

    def release(self) -> None:
        """Nothing is mapped."""
