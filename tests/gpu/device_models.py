"""A tiny random model on the kernels of a platform."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from fake_runtime import FakeRuntime
from kernel_platform import Platform

from engine.device.buckets import Buckets
from engine.device.cuda_runtime import CudaRuntime
from engine.device.kv_memory import DeviceKVCache
from engine.device.runtime import DeviceRuntime
from engine.layers.weights import Weights
from engine.models.decoder import Decoder
from engine.models.device_decoder import DeviceDecoder
from engine.ops import reference
from engine.ops.cuda.candidates import Fp8Choice, best_product, candidates
from engine.ops.features import features_of
from engine.ops.registry import choose
from engine.rope_spec import RopeSpec
from engine.spec import AttentionSpec, LatentAttentionSpec, LayerSpec, MlpSpec, ModelSpec

_ATTENTION = AttentionSpec(2, 1, 64, RopeSpec(10000.0), scale=0.125, qk_norm=True)
_WINDOWED = replace(_ATTENTION, window=40)
SPEC = ModelSpec(
    "qwen3",
    64,
    320,
    512,
    1e-5,
    (LayerSpec(_ATTENTION, MlpSpec(96)), LayerSpec(_WINDOWED, MlpSpec(96))),
    tie_embeddings=True,
)

LATENTS = LatentAttentionSpec(2, 48, 256, 32, 32, 40, RopeSpec(10000.0), scale=0.125)
LATENT_SPEC = replace(SPEC, architecture="deepseek_v3", layers=(LayerSpec(LATENTS, MlpSpec(96)),))

MAX_NUM_SEQS = 8


class DrawnByName:
    """Weights that depend on their names alone."""

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> None:
        self._device = device
        self._dtype = dtype

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype | None = None) -> torch.Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        drawn = torch.randn(*shape, generator=generator) * 0.2 + (1.0 if name.endswith("norm.weight") else 0.0)
        return drawn.to(self._device, dtype or self._dtype)

    def take_matrix(self, name: str, shape: Sequence[int], kinds: frozenset[str]) -> torch.Tensor:
        return self.take(name, shape)


def runtime_of(platform: Platform) -> DeviceRuntime:
    return FakeRuntime() if platform.name == "emulated" else CudaRuntime()


def device_decoder(
    platform: Platform,
    runtime: DeviceRuntime,
    buckets: Buckets | None,
    spec: ModelSpec = SPEC,
    weights: Weights | None = None,
    fp8: Fp8Choice | None = None,
) -> DeviceDecoder:
    """On the platform's kernels, and torch's products where it has none; `weights` that are quantised stay so, with
    `fp8` those in FP8."""
    capability = torch.cuda.get_device_capability() if platform.name == "gpu" else (0, 0)
    product = best_product(platform.library, capability) if platform.name == "gpu" else None
    quantised_on = None if weights is None else platform.device
    offered = [*reference.CANDIDATES, *candidates(platform.library, product, quantised_on, fp8)]
    ops = choose(offered, torch.bfloat16, features_of(spec))
    decoder = Decoder(spec, ops, weights or DrawnByName(platform.device), 512, "bfloat16", platform.device)
    return DeviceDecoder(decoder, platform.library, runtime, buckets, MAX_NUM_SEQS)


def bound(model: DeviceDecoder, platform: Platform, num_blocks: int) -> DeviceDecoder:
    """To a cache in which everything that nobody wrote is NaN."""
    cache = DeviceKVCache.zeros(model.kv_layout(32, "auto"), num_blocks, platform.device)
    cache.elements().fill_(float("nan"))
    model.bind_kv_cache(cache)
    return model


def reference_decoder(spec: ModelSpec = SPEC, weights: Weights | None = None) -> Decoder:
    """The same model by the plain operations on the CPU."""
    ops = choose(list(reference.CANDIDATES), torch.bfloat16, features_of(spec))
    return Decoder(spec, ops, weights or DrawnByName(torch.device("cpu")), 512, "bfloat16")
