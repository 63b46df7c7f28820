"""A model built on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from engine.device.buckets import Buckets
from engine.device.cuda_runtime import CudaRuntime
from engine.device.guard import start_guard
from engine.gpu_place import GpuPlace
from engine.layers.torch_weights import TorchWeights
from engine.models.decoder import Decoder
from engine.models.device_decoder import DeviceDecoder
from engine.numerics import gpu_numerics_id
from engine.ops import reference
from engine.ops.cuda.candidates import Fp8Choice, best_product, candidates, obstacle
from engine.ops.cuda.fp8_products import rows_that_codes_meet
from engine.ops.cuda.library import Library
from engine.ops.features import features_of
from engine.ops.registry import choose
from engine.spec import ModelSpec
from engine.tuning.decision import Mode
from engine.tuning.kept import kept_tuner
from engine.tuning.operations import TunedMatrices, TunedOperations
from engine.tuning.tactic_counts import TacticCounts
from engine.weights import WeightSource
from wire.errors import ErrorCode, SpliceError

_SMALLER = "take a smaller or quantised model, or a GPU on which nothing else runs"


BuiltOnGpu = tuple[DeviceDecoder, str, Callable[[], TacticCounts] | None]
"""A model, its `numerics_id`, and what its tactics come to; None where nothing is tuned."""


def build_on_gpu(spec: ModelSpec, weights: WeightSource, length: int, place: GpuPlace) -> BuiltOnGpu:
    """The model with activations in bfloat16.

    `length`: positions the rotary tables cover. Raises SpliceError for weights that are not the spec's, for a model
    that no kernel computes, and where GPU or kernels are missing.
    """
    reason = obstacle(spec)
    if reason is not None:
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            f"{spec.architecture} is not computed on a GPU, because {reason}: use --device cpu",
            param="device",
        )
    library, runtime = Library(), CudaRuntime(place.index)
    with start_guard(runtime, "loading the model", _SMALLER, "device"):
        return _built(spec, weights, length, place, library, runtime)


def _built(
    spec: ModelSpec, weights: WeightSource, length: int, place: GpuPlace, library: Library, runtime: CudaRuntime
) -> BuiltOnGpu:
    product = best_product(library, runtime.capability)
    mode: Mode = "deterministic" if place.is_deterministic else "fast"
    tuned = None
    fp8 = None
    is_fp8 = place.fp8_rows is not None
    keeps_quantised = place.is_quantised or is_fp8
    if place.tactics is not None:
        matrices: TunedMatrices = "fp8" if is_fp8 else "others" if place.is_quantised else "bfloat16"
        tuned = TunedOperations(library, runtime.device, mode, matrices=matrices)
    if is_fp8:
        rows = rows_that_codes_meet(library, runtime.capability, wants_bfloat16=place.fp8_rows == "bfloat16")
        tactics_of_fp8 = None if tuned is None else tuned.fp8
        fp8 = Fp8Choice(runtime.device, rows, place.quantises, tactics=tactics_of_fp8)
    blocks_on = runtime.device if place.is_quantised else None
    offered = [*reference.CANDIDATES, *candidates(library, product, blocks_on, fp8, keeps_bits=mode != "fast")]
    if tuned is not None:
        offered += tuned.candidates()
    ops = choose(offered, torch.bfloat16, features_of(spec))
    on_device = TorchWeights(weights, torch.bfloat16, runtime.device, keeps_quantised=keeps_quantised)
    decoder = Decoder(spec, ops, on_device, length, "bfloat16", runtime.device)
    buckets = None if place.enforce_eager else Buckets.up_to(place.max_num_seqs, length)
    tactics: Mapping[str, str] = {}
    if tuned is not None and place.tactics is not None:
        tactics = tuned.tune(spec, kept_tuner(tuned.tunables, library, place.tactics))
    if tuned is not None or fp8 is not None:
        torch.cuda.empty_cache()  # what was tried on, or in between, is not to count as taken when the cache is sized
    model = DeviceDecoder(decoder, library, runtime, buckets, place.max_num_seqs)
    numerics = gpu_numerics_id(runtime.capability, ops.names, tactics)
    return model, numerics, None if tuned is None else lambda: tuned.counts
