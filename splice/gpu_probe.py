"""Looking at the GPU, its driver, torch and the kernels. Changes nothing, makes no context, imports torch only where a
library of kernels is there to be asked."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import runpy
import shutil
from pathlib import Path

from engine.ops.cuda import driver
from engine.ops.cuda.sources import IN_A_CLONE, sources_digest
from splice.gpu_state import Gpu, GpuState, Kernels
from wire.errors import SpliceError


def probe_gpu() -> GpuState:
    """Never raises for what is missing or broken: that is what it looks for."""
    nodes = tuple(sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*")))
    cuda, gpus, error = _driver()
    version, torch_cuda = _torch()
    kernels, kernels_error = _kernels()
    return GpuState(
        device_nodes=nodes,
        kernel_module=driver.kernel_module(),
        driver_cuda=cuda,
        gpus=gpus,
        driver_error=error,
        torch=version,
        torch_cuda=torch_cuda,
        nvcc=_nvcc(),
        kernels=kernels,
        kernels_error=kernels_error,
        sources=sources_digest() if IN_A_CLONE.is_dir() else None,
    )


def _driver() -> tuple[int | None, tuple[Gpu, ...], str | None]:
    try:
        cuda = driver.cuda_version()
    except SpliceError as error:
        return None, (), error.message
    try:
        return cuda, tuple(Gpu(each.name, each.capability) for each in driver.devices()), None
    except SpliceError as error:
        return cuda, (), error.message


def _torch() -> tuple[str | None, str | None]:
    """Its version and its CUDA, read off its file: importing it takes seconds."""
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None, None
    specification = importlib.util.find_spec("torch")
    file = Path(specification.origin).with_name("version.py") if specification and specification.origin else None
    if file is None or not file.exists():
        return version, None
    cuda = runpy.run_path(str(file)).get("cuda")
    return version, None if cuda is None else str(cuda)


def _nvcc() -> str | None:
    """Looked for where the build looks."""
    home = os.environ.get("CUDA_HOME")
    places = [os.path.join(home, "bin")] if home else []
    found = (shutil.which("nvcc", path=place) for place in (None, *places, "/usr/local/cuda/bin"))
    return next((path for path in found if path), None)


def _kernels() -> tuple[Kernels | None, str | None]:
    package = importlib.util.find_spec("engine")
    folders = list(package.submodule_search_locations or ()) if package else []
    if not any(Path(folder, "libsplice_cuda.so").exists() for folder in folders):
        return None, None
    try:
        from engine.ops.cuda.library import Library  # noqa: PLC0415 (imports torch)

        build = Library().build()
    except (SpliceError, ImportError) as error:
        return None, str(error)
    return Kernels(build.sources, build.targets, build.runtime), None
