"""Every test here runs twice: in the emulator, and on a GPU where there is one."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

import kernel_platform
import pytest
import torch
from kernel_platform import Platform


@pytest.fixture(scope="session")
def _emulated() -> Platform:
    return kernel_platform.emulated()


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def platform(request: pytest.FixtureRequest) -> Iterator[Platform]:
    """Skips with its reason where there is no GPU. Where a kernel's matrix loads meet in a bank of shared memory, the
    test of it fails in the emulator: a GPU would be slower and say nothing."""
    if request.param == "emulated":
        emulated: Platform = request.getfixturevalue("_emulated")
        conflicts = emulated.library.function("emulator_bank_conflicts")
        conflicts.restype = ctypes.c_int64
        conflicts()
        yield emulated
        found = conflicts()
        assert found == 0, f"{found} matrices of 8 rows took more than one access to shared memory"
        return
    missing = kernel_platform.why_no_gpu()
    if missing:
        pytest.skip(missing)
    yield kernel_platform.gpu()


@pytest.fixture
def drawn(platform: Platform) -> Callable[..., torch.Tensor]:
    """Normally distributed bfloat16 of a shape, on the platform's device; the same in every run of a test."""
    generator = torch.Generator().manual_seed(20)

    def draw(*shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(dtype).to(platform.device)

    return draw


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fresh memory is NaN, or the largest whole number: what a kernel leaves out shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def reseeded(platform: Platform) -> Callable[[int], None]:
    """Sets the order in which emulated threads run; on a GPU there is nothing to set."""

    def set_seed(seed: int) -> None:
        if platform.name == "emulated":
            platform.library.function("emulator_seed")(seed)

    return set_seed
