"""Which kernels attend over latents: Hopper's where they do what the others do, one arithmetic for a model's steps."""

from __future__ import annotations

import pytest
import torch
from closeness import same_bits
from latent_cases import latent_case

from engine.ops.cuda.latent_kernels import EVERYWHERE, LatentKernels, choice_of, latent_kernels
from engine.ops.cuda.latent_ops import LatentOps
from engine.ops.cuda.library import Library
from engine.steps.step_plan import StepBounds


class Launches:
    """A library that says what was launched."""

    def __init__(self, library: Library, *missing: str) -> None:
        self.names: list[str] = []
        self._library, self._missing, self.device_type = library, missing, library.device_type

    def has(self, function: str) -> bool:
        return function not in self._missing and self._library.has(function)

    def function(self, name: str):
        return self._library.function(name)

    def call(self, name: str, arguments) -> None:
        self.names.append(name)
        self._library.call(name, arguments)


@pytest.mark.parametrize(
    ("same", "close", "consistent", "few", "name"),
    [
        (True, True, True, "latent_sm90_decode", "cuda"),
        (False, True, True, "latent_sm90_decode", "latent_sm90"),
        (False, False, True, "latent_decode", "cuda"),
        (True, True, False, "latent_decode", "cuda"),
        (False, True, False, "latent_decode", "cuda"),
    ],
)
def test_hoppers_kernels_are_taken_where_they_differ_by_rounding_alone(same, close, consistent, few, name):
    chosen = choice_of(same=same, close=close, consistent=consistent)
    assert (chosen.few, chosen.name) == (few, name)
    assert ("sm90" in chosen.few) == ("sm90" in chosen.many)


def test_other_gpus_and_libraries_are_not_asked(platform):
    launches = Launches(platform.library)
    assert latent_kernels(launches, is_hopper=False) is EVERYWHERE
    assert latent_kernels(Launches(platform.library, "latent_sm90_decode"), is_hopper=True) is EVERYWHERE
    assert launches.names == []


def test_the_gpu_is_asked_whether_kernels_agree(platform):
    if platform.name == "gpu" and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("this GPU is no Hopper")
    if not platform.library.has("latent_sm90_decode"):
        pytest.skip("latent_attention_sm90 was not built for this GPU")
    found = latent_kernels(platform.library, is_hopper=True)
    names = {"cuda"} if platform.name == "emulated" else {"cuda", "latent_sm90"}
    assert (found.few, found.many) == ("latent_sm90_decode", "latent_sm90_prefill")
    assert found.name in names


def test_a_step_takes_the_chosen_kernels_and_its_bits_are_those_of_the_others(platform):
    if platform.name == "gpu":
        pytest.skip("kernels may round differently on a GPU: the emulator holds them to the same bits")
    case = latent_case([(70, 1), (3, 40)], 2, (256, 32), platform.device)
    up = torch.randn(2, 32, 256, generator=torch.Generator().manual_seed(1)).bfloat16()
    q = torch.cat((torch.randn(41, 2, 16, generator=torch.Generator().manual_seed(2)).bfloat16(), case.rotated), 2)
    bounds = StepBounds(max_context=71, max_query=40, leading_singles=1)
    found, kernels = [], []
    for chosen in (EVERYWHERE, LatentKernels("latent_sm90_decode", "latent_sm90_prefill", "cuda")):
        launches, rows = Launches(platform.library), case.rows
        step = (case.cache, 1, rows.block_tables, rows.query_starts, rows.starts, torch.zeros(2, dtype=torch.int32))
        ops = LatentOps(launches, chosen)
        found.append(ops.latent_attention(q, *step, up, case.scale, bounds=bounds))
        kernels.append([name for name in launches.names if name.startswith("latent")])
    assert kernels == [["latent_decode", "latent_prefill"], ["latent_sm90_decode", "latent_sm90_prefill"]]
    assert same_bits(*found)
