"""FP8 products under the tuner with our kernels themselves; a model in FP8 that asks what was found."""

from __future__ import annotations

import pytest
import torch
from closeness import same_bits
from device_models import SPEC, DrawnByName, bound, device_decoder, runtime_of
from fp8_cases import exact_product
from kernel_timer import timer_of

from engine.device.buckets import Buckets
from engine.ops.cuda.candidates import Fp8Choice
from engine.ops.cuda.fp8 import gemm_fp8
from engine.steps.batch import SequenceSlice, StepBatch
from engine.tuning.fp8_products import fp8_tunables
from engine.tuning.operations import TunedOperations
from engine.tuning.shapes import Shape
from engine.tuning.tuner import Tuner

BATCH = StepBatch((SequenceSlice(list(range(5, 12)), 0, [0], True), SequenceSlice([9], 0, [1], True)))


@pytest.mark.parametrize("mode", ["fast", "deterministic"])
def test_our_fp8_kernels_pass_the_tuner(platform, mode):
    is_hopper = platform.name == "gpu" and torch.cuda.get_device_capability()[0] == 9
    ops = ("fp8_weights", "fp8_block_weights", *(("fp8_codes", "fp8_block_codes") if is_hopper else ()))
    tunables = fp8_tunables(platform.library, platform.device)
    tuner = Tuner(tunables, timer_of(platform), buckets=(1, 3, 66), rotated_bytes=1)
    shapes = [Shape(op, 40, 256) for op in ops]
    for shape, entry in zip(shapes, tuner.tune(shapes, mode).entries, strict=True):
        tried = {trial.tactic for trial in entry.trials}
        assert not [trial for trial in entry.skipped if trial.tactic.startswith("gemm")], entry.skipped
        if shape.op.endswith("weights"):
            assert tried == {"gemm_fp8_weights", "gemm_fp8_weights-0", "gemm_fp8_weights-1"}
        if platform.name == "emulated":
            assert {name for _, name in entry.chosen} == {"gemm_fp8_weights"}


def _model(platform, tuned, rows):
    is_hopper = platform.name == "gpu" and torch.cuda.get_device_capability()[0] == 9
    multiply = gemm_fp8 if is_hopper else exact_product
    tactics = None if tuned is None else tuned.fp8
    fp8 = Fp8Choice(platform.device, rows, quantises=True, multiply=multiply, tactics=tactics)
    weights = DrawnByName(platform.device)
    return bound(device_decoder(platform, runtime_of(platform), Buckets((2,), (96,)), SPEC, weights, fp8), platform, 3)


def test_a_tuned_model_in_fp8_has_the_bits_it_had_and_says_what_it_took(platform):
    tuned = TunedOperations(platform.library, platform.device, "deterministic", matrices="fp8")
    model = _model(platform, tuned, "bfloat16")
    tuner = Tuner(tuned.tunables, timer_of(platform), buckets=(1, 4, 16), rotated_bytes=1)
    identity = tuned.tune(SPEC, tuner)
    projections = {name: tactic for name, tactic in identity.items() if name.startswith("fp8")}
    assert {name.partition(":")[0] for name in projections} == {"fp8_weights"}
    assert len(projections) >= 3
    found = torch.from_numpy(model.forward(BATCH).host(slice(None)))
    assert tuned.counts.hits > 0
    assert tuned.counts.misses == 0
    if platform.name == "emulated":
        assert set(projections.values()) == {"gemm_fp8_weights"}
        wanted = torch.from_numpy(_model(platform, None, "bfloat16").forward(BATCH).host(slice(None)))
        assert same_bits(found, wanted)


def test_rows_that_become_codes_are_tuned_as_such(platform):
    tuned = TunedOperations(platform.library, platform.device, "deterministic", matrices="fp8")
    noted: list[tuple[str, str]] = []

    class _Tactics:
        def note(self, weight, rows):
            noted.append((weight.scaling, rows))

        def product(self, x, weight, bias):
            return exact_product(platform.library, x, weight, bias, tile=0)

    tuned.fp8 = _Tactics()
    _model(platform, tuned, "codes").forward(BATCH).wait()
    assert set(noted) == {("rows", "codes")}
