"""Everything that is measured can be made and launched: faces take its shapes, and no GPU's memory is too small for it.

Tensors have no memory here, so that whole models' shapes cost nothing, and nothing is computed.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from kernel_platform import SOURCES
from torch.overrides import TorchFunctionMode

from benchmarks.gpu.cases import case as case_module
from benchmarks.gpu.cases import cases
from benchmarks.gpu.cases.case import Case

CASES = cases()
DECLARED = set(re.findall(r"splice_cuda_(\w+)\(", (SOURCES / "splice_cuda.h").read_text()))
MOST_BYTES = 100 << 30
OF_ANOTHER_PROCESS = ("pull", "push", "digests")
"""Cases that begin with an allocation by the driver itself."""
OF_A_LOOP = "loop over experts"
"""Asks tensors which tokens are whose."""


class Launches:
    """A library that takes every launch and does nothing."""

    device_type = "meta"

    def __init__(self, library) -> None:
        self.names: list[str] = []
        self._library = library

    def has(self, function: str) -> bool:
        return function in DECLARED

    def function(self, name: str) -> Callable[..., int]:
        return self._library.function(name) if self._library.has(name) else lambda *_: 1024

    def call(self, name: str, arguments: object) -> None:
        self.names.append(name)


class WithoutMemory(TorchFunctionMode):
    """Tensors that are asked for on a GPU have shapes and nothing else; counts their bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        is_made = str(kwargs.get("device", "")).startswith("cuda")
        if func is torch.Tensor.cuda:
            return args[0].to("meta")
        if is_made:
            kwargs["device"] = "meta"
        found = func(*args, **kwargs)
        if is_made:
            self.num_bytes += found.numel() * found.element_size()
        return found


@pytest.fixture
def launches(request):
    return Launches(request.getfixturevalue("_emulated").library)


@pytest.fixture(autouse=True)
def _memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (MOST_BYTES, MOST_BYTES))
    monkeypatch.setattr(case_module, "_MOST_SETS", 1)  # all are alike, and together no larger than a cache or two


def _here(case: Case) -> bool:
    return not any(word in case.name for word in OF_ANOTHER_PROCESS)


def test_every_case_launches_the_function_it_is_about(launches):
    assert len({case.name for case in CASES}) == len(CASES)
    for case in filter(_here, CASES):
        assert launches.has(case.function), case.name
        launches.names.clear()
        with WithoutMemory() as tensors:
            for call in case.make(launches):
                call()
        assert case.function in launches.names, case.name
        assert tensors.num_bytes < MOST_BYTES, case.name


def test_every_rival_takes_the_same_shapes():
    for case in CASES:
        if case.rival is None or case.rival_name == OF_A_LOOP or not _here(case):
            continue
        with WithoutMemory() as tensors:
            for call in case.rival():
                call()
        assert case.rival_name
        assert 0 < tensors.num_bytes < MOST_BYTES, case.name


def test_a_case_that_the_gpu_cannot_hold_says_so_before_it_allocates(launches, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (20 << 30, 80 << 30))
    largest = next(case for case in CASES if case.name == "decode attention, batch 256, context 32768")
    with WithoutMemory() as tensors, pytest.raises(LookupError, match="takes 32 GiB, the GPU has 20 GiB left"):
        largest.make(launches)
    assert tensors.num_bytes < 1 << 30


def test_the_decode_target_is_measured_at_all_of_its_batches_and_contexts():
    names = {case.name for case in CASES if case.goal == "decode attention"}
    for batch in (1, 8, 32, 64, 128, 256):
        for context in (1024, 4096, 8192, 32768):
            assert f"decode attention, batch {batch}, context {context}" in names
