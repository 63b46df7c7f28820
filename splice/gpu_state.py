"""Whether this machine's GPU can be used, and what keeps it from that: from what a probe saw to findings.

A machine without any is whole; everything here is therefore `optional`, and says what to do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from splice.finding import Finding

OLDEST = (8, 0)
"""Ampere."""
_WRONG_PAIR = ("803", "804", "version mismatch")
"""What the driver's library says where the kernel module is another version's."""


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    capability: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Kernels:
    """The library of CUDA kernels that is installed, and what it says of itself."""

    sources: str
    targets: tuple[str, ...]
    """`sm_90`: machine code, `compute_80`: PTX."""
    runtime: int
    """CUDA's version, as 13000."""


@dataclass(frozen=True, slots=True)
class GpuState:
    """What was seen. None and empty: not there."""

    device_nodes: tuple[str, ...] = ()
    """Names under /dev, of GPUs."""
    kernel_module: str | None = None
    driver_cuda: int | None = None
    """The newest CUDA that the driver's library knows, as 13000."""
    gpus: tuple[Gpu, ...] = ()
    driver_error: str | None = None
    """Why a driver that is installed names no GPU."""
    torch: str | None = None
    """Its version."""
    torch_cuda: str | None = None
    """The CUDA it was built with."""
    nvcc: str | None = None
    kernels: Kernels | None = None
    kernels_error: str | None = None
    """Why a library that is there does not open."""
    sources: str | None = None
    """The digest of csrc/cuda, in a clone."""


def gpu_findings(state: GpuState) -> list[Finding]:
    """One finding a part, those of no use left out; without any sign of a GPU one says so."""
    found = [_nvcc(state), _device(state)]
    if state.gpus:
        found.append(_torch(state))
    if state.gpus or state.kernels is not None or state.kernels_error is not None:
        found.append(_kernels(state))
    return found


def _nvcc(state: GpuState) -> Finding:
    if state.nvcc is not None:
        return Finding("nvcc", "ok", state.nvcc)
    return Finding("nvcc", "optional", "not found", "only to build GPU kernels: install the CUDA toolkit")


def _device(state: GpuState) -> Finding:
    if state.gpus:
        names = ", ".join(f"{gpu.name} (sm_{_digits(gpu)})" for gpu in state.gpus)
        old = [gpu for gpu in state.gpus if gpu.capability < OLDEST]
        if old:
            return _lacking(names, f"{old[0].name} is older than Ampere (sm_80), for which there are no kernels")
        return Finding("GPU", "ok", f"{names}, driver for CUDA {_spelled(state.driver_cuda)}")
    if state.driver_cuda is None:
        if state.device_nodes or state.kernel_module is not None:
            seen = ", ".join(state.device_nodes) or "the kernel module is loaded"
            return _lacking(
                f"{seen}, but no libcuda.so.1",
                "install the driver's libraries (libcuda.so.1, libnvidia-ml.so.1); in a container, start it with"
                " `--gpus all`, which brings them in",
            )
        return _lacking("none", "Splice runs whole without one")
    if not state.device_nodes:
        return _lacking(
            f"a driver for CUDA {_spelled(state.driver_cuda)}, but no /dev/nvidia0",
            "in a container, start it with `--gpus all`; on a host, load the kernel module: `nvidia-modprobe -u -c 0`",
        )
    error = state.driver_error or "no word why"
    if any(mark in error for mark in _WRONG_PAIR):
        remedy = "the driver's library and the loaded kernel module are of different versions: restart the machine"
    else:
        remedy = "see what `nvidia-smi` says; CUDA_VISIBLE_DEVICES may hide every GPU"
    return _lacking(f"{', '.join(state.device_nodes)}, but the driver names none: {error}", remedy)


def _torch(state: GpuState) -> Finding:
    part, wheels = "torch for the GPU", f"cu{_wheel(state.driver_cuda)}"
    remedy = f"pip install torch --index-url https://download.pytorch.org/whl/{wheels}, then the extra of that CUDA"
    if state.torch is None:
        return Finding(part, "optional", "torch is not installed", remedy)
    if state.torch_cuda is None:
        return Finding(part, "optional", f"torch {state.torch} was built without CUDA", remedy)
    major = int(state.torch_cuda.partition(".")[0])
    if state.driver_cuda is not None and major > state.driver_cuda // 1000:
        found = f"torch {state.torch} is for CUDA {state.torch_cuda}, the driver for {_spelled(state.driver_cuda)}"
        return Finding(part, "optional", found, f"update the driver, or {remedy}")
    return Finding(part, "ok", f"{state.torch} for CUDA {state.torch_cuda}; what goes with it is the extra cuda{major}")


def _kernels(state: GpuState) -> Finding:
    part, kernels = "CUDA kernels", state.kernels
    build = "`make cuda` in a clone" if state.nvcc else "install the CUDA toolkit, then `make cuda`"
    if state.kernels_error is not None:
        return Finding(part, "optional", "a library that does not fit", f"{state.kernels_error}; {build}")
    if kernels is None:
        return Finding(part, "optional", "not built", f"{build}, or `pip install .` where nvcc is")
    text = f"for {' '.join(kernels.targets)}, with CUDA {_spelled(kernels.runtime)}"
    if state.sources is not None and state.sources != kernels.sources:
        return Finding(part, "optional", f"{text}, of other sources than csrc/cuda here", build)
    if state.driver_cuda is not None and kernels.runtime // 1000 > state.driver_cuda // 1000:
        remedy = f"update the driver (it knows CUDA {_spelled(state.driver_cuda)}), or build with a toolkit it knows"
        return Finding(part, "optional", text, remedy)
    able = [gpu for gpu in state.gpus if gpu.capability >= OLDEST]
    without = [gpu for gpu in able if not runs_on(kernels, gpu.capability, state.driver_cuda or 0)]
    if without:
        return Finding(part, "optional", f"{text}: no code for {without[0].name} (sm_{_digits(without[0])})", build)
    return Finding(part, "ok", text)


def runs_on(kernels: Kernels, capability: tuple[int, int], driver_cuda: int) -> bool:
    """Whether there is machine code for it (of the same generation, no newer; `sm_90a` for that alone), or PTX that the
    driver can translate: of no newer a GPU, and of no newer a CUDA than the driver's."""
    for target in kernels.targets:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)a?", target)
        if match is None:
            continue
        made_for = int(match[2]), int(match[3])
        if target.endswith("a"):
            fits = made_for == capability
        elif match[1] == "sm":
            fits = made_for[0] == capability[0] and made_for <= capability
        else:
            fits = made_for <= capability and kernels.runtime <= driver_cuda
        if fits:
            return True
    return False


def _lacking(found: str, remedy: str) -> Finding:
    return Finding("GPU", "optional", found, remedy)


def _digits(gpu: Gpu) -> str:
    return "".join(map(str, gpu.capability))


def _spelled(version: int | None) -> str:
    return "unknown" if version is None else f"{version // 1000}.{version % 1000 // 10}"


def _wheel(driver_cuda: int | None) -> str:
    """The newest CUDA that torch's wheels are made for and this driver knows."""
    return "130" if driver_cuda is None or driver_cuda >= 13000 else "126"
