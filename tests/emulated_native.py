"""pytest plugin (`-p tests.emulated_native`, see `make test-isa`): kernels of instruction sets that this machine lacks.

In the place of `engine._native` stands the same module built with `-DSPLICE_CPU_EMULATED=ON`: the kernels' own source
over the intrinsics of `csrc/cpu/emulation`. What it proves is their arithmetic and indices, not the compiler's code.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

import pytest

BUILT = Path(__file__).parent.parent / "build" / "emulated"
NAME = "engine._native"


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Before any test module, or conftest, can import the real one."""
    found = sorted(path for suffix in importlib.machinery.EXTENSION_SUFFIXES for path in BUILT.glob(f"_native{suffix}"))
    if not found:
        raise pytest.UsageError(f"no emulated kernels in {BUILT}: `make test-isa` builds them")
    if NAME in sys.modules:
        raise pytest.UsageError(f"{NAME} was imported before its emulation could stand in for it")
    specification = importlib.util.spec_from_file_location(NAME, found[0])
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[NAME] = module
    specification.loader.exec_module(module)


def pytest_report_header() -> str:
    return f"emulated instruction sets: {', '.join(sys.modules[NAME].supported_isas())}"
