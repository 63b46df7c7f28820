"""A model whose operations ask a table: the same bits in deterministic mode, every look-up known once it is tuned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from closeness import same_bits
from device_models import MAX_NUM_SEQS, SPEC, DrawnByName, bound, device_decoder, runtime_of
from kernel_timer import EarlierIsFaster, timer_of

from engine.device.buckets import Buckets
from engine.models.decoder import Decoder
from engine.models.device_decoder import DeviceDecoder
from engine.ops import reference
from engine.ops.cuda.candidates import best_product, candidates
from engine.ops.features import features_of
from engine.ops.registry import choose
from engine.spec import MlpSpec, MoeSpec, RoutingSpec
from engine.steps.batch import SequenceSlice, StepBatch
from engine.tuning.operations import TunedOperations, row_shapes
from engine.tuning.tuner import Tuner

BUCKETS = (1, 4, 16)
BATCH = StepBatch((SequenceSlice(list(range(5, 12)), 0, [0], True), SequenceSlice([9], 0, [1], True)))


def _tuned_model(platform, mode):
    tuned = TunedOperations(platform.library, platform.device, mode)
    product = best_product(platform.library, torch.cuda.get_device_capability()) if platform.name == "gpu" else None
    offered = [*reference.CANDIDATES, *candidates(platform.library, product), *tuned.candidates()]
    ops = choose(offered, torch.bfloat16, features_of(SPEC))
    decoder = Decoder(SPEC, ops, DrawnByName(platform.device), 512, "bfloat16", platform.device)
    runtime = runtime_of(platform)
    return tuned, ops, DeviceDecoder(decoder, platform.library, runtime, Buckets((2,), (96,)), MAX_NUM_SEQS)


@pytest.mark.parametrize("mode", ["fast", "deterministic"])
def test_a_tuned_model_looks_nothing_up_in_vain_and_says_what_it_took(platform, mode):
    tuned, ops, model = _tuned_model(platform, mode)
    timer = timer_of(platform)
    identity = tuned.tune(SPEC, Tuner(tuned.tunables, timer, buckets=BUCKETS, rotated_bytes=1 << 16))
    shapes = [str(shape) for shape in row_shapes(SPEC)]
    if mode == "fast":
        assert identity == {"tactics": "fast"}
        assert ops.names["linear"] == "tuned"
    else:
        assert set(shapes) <= set(identity)
        assert {"norm", "gate"} >= {identity[shape] for shape in shapes if platform.name == "emulated"}
    assert ops.names["add_rms_norm"] == ops.names["gated_mul"] == "tuned"
    bound(model, platform, 3).forward(BATCH).wait()
    assert tuned.counts.hits > 0
    assert tuned.counts.misses == 0


def test_a_deterministic_model_has_the_bits_of_one_that_was_not_tuned(platform):
    tuned, _, model = _tuned_model(platform, "deterministic")
    timer = timer_of(platform)
    tuned.tune(SPEC, Tuner(tuned.tunables, timer, buckets=BUCKETS, rotated_bytes=1 << 16))
    plain = device_decoder(platform, runtime_of(platform), Buckets((2,), (96,)))
    found, expected = (
        torch.from_numpy(bound(each, platform, 3).forward(BATCH).host(slice(None))) for each in (model, plain)
    )
    assert bool(found.isfinite().all())
    if platform.name == "emulated":
        assert same_bits(found, expected)


def test_before_it_is_tuned_a_model_runs_and_counts_what_it_did_not_know(platform):
    tuned, _, model = _tuned_model(platform, "deterministic")
    bound(model, platform, 3).forward(BATCH).wait()
    assert tuned.counts.hits == 0
    assert tuned.counts.misses > 0


def test_where_matrices_are_quantised_no_product_is_tuned(platform):
    tuned = TunedOperations(platform.library, platform.device, "deterministic", matrices="others")
    assert [tunable.op for tunable in tuned.tunables] == ["add_rms_norm", "silu_mul"]
    assert [candidate.op for candidate in tuned.candidates()] == ["add_rms_norm", "gated_mul"]
    identity = tuned.tune(SPEC, Tuner(tuned.tunables, EarlierIsFaster(), buckets=BUCKETS, rotated_bytes=1 << 16))
    assert set(identity) == {str(shape) for shape in row_shapes(SPEC)}


def test_of_gates_those_are_tuned_that_are_looked_up():
    [layer, *_] = SPEC.layers
    shared = MoeSpec(RoutingSpec(4, 2, "softmax", normalise=True), MlpSpec(64), shared=MlpSpec(160))
    layers = tuple(replace(layer, mlp=mlp) for mlp in (MlpSpec(96), MlpSpec(128, "gelu_tanh"), shared))
    gates = [shape.n for shape in row_shapes(replace(SPEC, layers=layers)) if shape.op == "silu_mul"]
    assert gates == [96, 160]
