"""scikit-build-core's backend, which also asks for CUTLASS's headers where CUDA kernels can be compiled.

So a plain `pip install .` builds them on a machine with nvcc, and fetches nothing for them on one without.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Any

from scikit_build_core.build import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from scikit_build_core.build import get_requires_for_build_editable as _editable_requires
from scikit_build_core.build import get_requires_for_build_wheel as _wheel_requires

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]
CUTLASS = "nvidia-cutlass>=4.2"
_Settings = Mapping[str, Any] | None


def get_requires_for_build_wheel(config_settings: _Settings = None) -> list[str]:
    """PEP 517."""
    return [*_wheel_requires(config_settings), *cuda_requires(config_settings)]


def get_requires_for_build_editable(config_settings: _Settings = None) -> list[str]:
    """PEP 660."""
    return [*_editable_requires(config_settings), *cuda_requires(config_settings)]


def cuda_requires(config_settings: _Settings) -> list[str]:
    """CUTLASS, unless the settings turn CUDA off, name its headers or build no native code, or no nvcc is found."""
    settings = config_settings or {}
    choice = str(settings.get("cmake.define.SPLICE_CUDA", "auto"))
    compiles = str(settings.get("wheel.cmake", "true")).lower() != "false"
    if choice == "off" or not compiles or "cmake.define.CUTLASS_ROOT" in settings:
        return []
    return [CUTLASS] if choice == "on" or _has_nvcc() else []


def _has_nvcc() -> bool:
    """Looked for where csrc/cuda/CMakeLists.txt looks."""
    home = os.environ.get("CUDA_HOME")
    places = [os.path.join(home, "bin")] if home else []
    return any(shutil.which("nvcc", path=place) for place in (None, *places, "/usr/local/cuda/bin"))
