from __future__ import annotations

import pytest

from engine._native import Kernels, supported_isas
from engine.ops.native import NativeOps


@pytest.fixture(params=supported_isas())
def ops(request: pytest.FixtureRequest) -> NativeOps:
    """The operations on each instruction set this machine has."""
    return NativeOps(Kernels(request.param, 1))


@pytest.fixture(params=[*supported_isas(), "3 threads"])
def other_ops(request: pytest.FixtureRequest) -> NativeOps:
    """What must equal the first instruction set on one thread, bit for bit."""
    return NativeOps(Kernels("auto", 3) if request.param == "3 threads" else Kernels(request.param, 1))


@pytest.fixture
def best_ops() -> NativeOps:
    return NativeOps(Kernels("auto", 1))
