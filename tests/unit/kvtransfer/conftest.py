"""A driver for tests that call CUDA's own names."""

from __future__ import annotations

import pytest
from compiled_fakes import compiled, cuda_headers


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A library with the driver's names. Skips where there is no cuda.h to build it against."""
    include = cuda_headers("cuda.h")
    if include is None:
        pytest.skip("no cuda.h here: it comes with the CUDA toolkit")
    return compiled("driver.cpp", tmp_path_factory.mktemp("driver") / "libcuda.so.1", f"-I{include}")
