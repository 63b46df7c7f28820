"""What `splice doctor` says of a GPU in each state a machine can be in, and that it never fails to look."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.ops.cuda import driver
from splice.gpu_probe import probe_gpu
from splice.gpu_state import Gpu, GpuState, Kernels, gpu_findings, runs_on
from wire.errors import SpliceError

H200 = Gpu("NVIDIA H200", (9, 0))
KERNELS = Kernels("0123456789abcdef", ("sm_80", "sm_90", "sm_90a", "compute_80"), 13000)
GOOD = GpuState(
    device_nodes=("nvidia0",),
    kernel_module="NVRM version: 580.95.05",
    driver_cuda=13000,
    gpus=(H200,),
    torch="2.11.0+cu130",
    torch_cuda="13.0",
    nvcc="/usr/local/cuda/bin/nvcc",
    kernels=KERNELS,
    sources=KERNELS.sources,
)


def _said(state: GpuState) -> dict[str, str]:
    """Parts that are not well, with all that is said of them."""
    return {each.part: f"{each.found}; {each.remedy}" for each in gpu_findings(state) if each.verdict != "ok"}


def test_a_machine_that_has_everything_is_well():
    assert _said(GOOD) == {}
    assert {each.part for each in gpu_findings(GOOD)} == {"nvcc", "GPU", "torch for the GPU", "CUDA kernels"}


def test_a_machine_without_a_gpu_is_whole():
    assert _said(GpuState()) == {
        "nvcc": "not found; only to build GPU kernels: install the CUDA toolkit",
        "GPU": "none; Splice runs whole without one",
    }


@pytest.mark.parametrize(
    ("change", "part", "found", "remedy"),
    [
        ({"gpus": (), "device_nodes": ()}, "GPU", "a driver for CUDA 13.0, but no /dev/nvidia0", "`--gpus all`"),
        ({"gpus": (), "driver_cuda": None}, "GPU", "nvidia0, but no libcuda.so.1", "install the driver's libraries"),
        (
            {"gpus": (), "driver_cuda": None, "device_nodes": ()},
            "GPU",
            "the kernel module is loaded, but no libcuda.so.1",
            "install the driver's libraries",
        ),
        ({"gpus": (), "driver_error": "cuInit failed with 100: no CUDA-capable device"}, "GPU", "100", "nvidia-smi"),
        ({"gpus": (), "driver_error": "cuInit failed with 803: system has"}, "GPU", "803", "restart the machine"),
        ({"gpus": (Gpu("Tesla V100", (7, 0)),)}, "GPU", "Tesla V100 (sm_70)", "older than Ampere"),
        ({"torch_cuda": None, "torch": "2.13.0+cpu"}, "torch for the GPU", "built without CUDA", "whl/cu130"),
        ({"torch": None, "torch_cuda": None}, "torch for the GPU", "not installed", "pip install torch"),
        (
            {"driver_cuda": 12080, "kernels": replace(KERNELS, runtime=12060)},
            "torch for the GPU",
            "is for CUDA 13.0, the driver for 12.8",
            "update the driver, or pip install torch --index-url https://download.pytorch.org/whl/cu126",
        ),
        ({"kernels": None}, "CUDA kernels", "not built", "`make cuda`"),
        ({"kernels": None, "nvcc": None}, "CUDA kernels", "not built", "install the CUDA toolkit, then `make cuda`"),
        (
            {"kernels": None, "kernels_error": "libsplice_cuda.so has ABI 1, expected 2"},
            "CUDA kernels",
            "does not fit",
            "has ABI 1, expected 2; `make cuda`",
        ),
        ({"sources": "fedcba9876543210"}, "CUDA kernels", "of other sources than csrc/cuda here", "`make cuda`"),
        (
            {"driver_cuda": 12040, "torch_cuda": "12.6"},
            "CUDA kernels",
            "with CUDA 13.0",
            "update the driver (it knows CUDA 12.4)",
        ),
        (
            {"kernels": replace(KERNELS, targets=("sm_80",))},
            "CUDA kernels",
            "no code for NVIDIA H200 (sm_90)",
            "`make cuda`",
        ),
    ],
)
def test_each_thing_that_is_wrong_is_named_with_its_remedy(change, part, found, remedy):
    said = _said(replace(GOOD, **change))
    assert found in said[part]
    assert remedy in said[part]
    assert set(said) <= {part, "nvcc"}, "nothing else is blamed"


def test_an_installed_package_has_no_sources_to_differ_from():
    assert _said(replace(GOOD, sources=None)) == {}


@pytest.mark.parametrize(
    ("targets", "capability", "driver_cuda", "runs"),
    [
        (("sm_80",), (8, 0), 13000, True),
        (("sm_80",), (8, 9), 13000, True),
        (("sm_86",), (8, 0), 13000, False),
        (("sm_80",), (9, 0), 13000, False),
        (("sm_90a",), (9, 0), 13000, True),
        (("sm_90a",), (10, 0), 13000, False),
        (("compute_80",), (12, 0), 13000, True),
        (("compute_80",), (12, 0), 13010, True),
        (("compute_80",), (12, 0), 12080, False),
        (("compute_90",), (8, 9), 13000, False),
        (("sm_120",), (12, 0), 13000, True),
        ((), (9, 0), 13000, False),
    ],
)
def test_code_runs_on_its_own_generation_and_ptx_on_newer_ones(targets, capability, driver_cuda, runs):
    assert runs_on(replace(KERNELS, targets=targets), capability, driver_cuda) is runs


def test_looking_at_this_machine_never_fails_and_agrees_with_the_driver():
    state = probe_gpu()
    assert gpu_findings(state)
    try:
        expected = [(each.name, each.capability) for each in driver.devices()]
    except SpliceError:
        expected = []
    assert [(gpu.name, gpu.capability) for gpu in state.gpus] == expected
    assert (state.driver_cuda is None) <= (state.gpus == ())
