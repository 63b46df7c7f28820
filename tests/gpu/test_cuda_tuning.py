"""Tuning the kernels themselves: each is right and keeps rows by the tuner's own check; on a GPU also timed."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_platform import why_no_gpu

from engine.ops.cuda.library import Library
from engine.tuning.cache import TacticCache
from engine.tuning.graph_timer import GraphTimer
from engine.tuning.machine import machine_key
from engine.tuning.products import linear
from engine.tuning.row_operations import GATE, NORM, add_norm, silu_mul
from engine.tuning.shapes import Shape
from engine.tuning.timer import TooSlow
from engine.tuning.tuner import Tuner

BUCKETS = (1, 3, 9)


class _EveryCallTakesAsLong:
    """The emulator has no speed: the first in order of preference wins."""

    def seconds(self, calls, limit_s):
        for call in calls:
            call()
        return 1e-3

    def settle(self):
        return None


@pytest.mark.parametrize("mode", ["fast", "deterministic"])
def test_our_kernels_pass_the_tuner_and_come_first(platform, mode):
    timer = _EveryCallTakesAsLong() if platform.name == "emulated" else GraphTimer(repeats=3)
    tunables = [make(platform.library, platform.device) for make in (add_norm, silu_mul)]
    tuner = Tuner(tunables, timer, buckets=BUCKETS, rotated_bytes=1 << 20)
    for entry in tuner.tune([Shape(NORM, 576, 576), Shape(GATE, 200, 400)], mode).entries:
        ours = {Shape(NORM, 576, 576): "norm", Shape(GATE, 200, 400): "gate"}[entry.shape]
        assert ours in entry.tried
        assert not any(trial.tactic == ours for trial in entry.skipped), entry.skipped
        if platform.name == "emulated":
            assert {name for _, name in entry.chosen} == {ours}


def test_a_machine_key_is_the_same_again_and_names_the_sources(platform):
    key = machine_key(platform.library)
    assert key == machine_key(platform.library)
    assert len(key.digest) == len(key.sources) == 16


def test_what_was_found_is_kept_under_the_key_of_this_machine(platform, tmp_path):
    """As it is: torch's version is no plain string."""
    timer = _EveryCallTakesAsLong() if platform.name == "emulated" else GraphTimer(repeats=3)
    key, shape = machine_key(platform.library), Shape(GATE, 200, 400)
    tunables = [silu_mul(platform.library, platform.device)]
    made = Tuner(tunables, timer, TacticCache(tmp_path, key), buckets=(1, 4), rotated_bytes=1).tune([shape], "fast")
    assert made.from_store == 0
    again = Tuner(tunables, timer, TacticCache(tmp_path, key), buckets=(1, 4), rotated_bytes=1).tune([shape], "fast")
    assert (again.from_store, again.entries) == (1, made.entries)


@pytest.mark.gpu
def test_gpu_products_are_tuned_and_the_choice_is_one_that_was_timed():
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    if missing := why_no_gpu():
        pytest.skip(missing)
    tunable = linear(Library(), torch.device("cuda"))
    for mode in ("fast", "deterministic"):
        entry = (
            Tuner([tunable], GraphTimer(), buckets=(1, 64, 1024)).tune([Shape("linear", 1024, 512)], mode).entries[0]
        )
        assert entry.chosen
        timed = {(trial.bucket, trial.tactic) for trial in entry.trials if trial.seconds}
        for bucket, name in entry.chosen:
            assert (bucket, name) in timed or mode == "deterministic"
        assert not [trial for trial in entry.skipped if trial.tactic == "gemm_sm90"], entry.skipped


@pytest.mark.gpu
def test_gpu_time_of_a_call_grows_with_its_work_and_one_beyond_its_limit_is_too_slow():
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    timer = GraphTimer()
    small, large = (torch.randn(1 << size, device="cuda") for size in (20, 28))
    times = [timer.seconds([lambda each=each: each.mul_(1.0)]) for each in (small, large)]
    assert all(math.isfinite(each) and each > 0 for each in times)
    assert times[1] > 4 * times[0]
    with pytest.raises(TooSlow):
        timer.seconds([lambda: large.mul_(1.0)], limit_s=times[1] / 100)
