"""The user's choice of an instruction set."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from quantised_weights import packed, random_blocks

from engine._native import Kernels, supported_isas
from engine.numerics import numerics_id
from engine.ops.cpu_isa import CPU_ISAS, CpuIsa, choose_cpu_isa
from engine.ops.native_kernels import KERNELS, isa
from splice.settings.groups import EngineSettings
from wire.errors import ErrorCode, SpliceError


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """The kernels are the process's own."""
    before = KERNELS.isa
    yield
    KERNELS.isa = before


def test_auto_is_the_best_this_machine_has() -> None:
    choose_cpu_isa("portable")
    choose_cpu_isa("auto")
    assert isa() == supported_isas()[0]


@pytest.mark.parametrize("name", supported_isas())
def test_a_choice_is_what_multiplies_and_what_the_numerics_id_names(name: CpuIsa) -> None:
    choose_cpu_isa(name)
    assert isa() == name
    assert f"isa={name}" in numerics_id("float32", {"linear": "native"}).split(";")


def test_the_numerics_id_of_native_and_torch_operations_names_the_arithmetic_of_both() -> None:
    choose_cpu_isa("portable")
    names = dict(
        part.partition("=")[::2]
        for part in numerics_id("float32", {"linear": "native", "rope_store": "torch"}).split(";")
    )
    assert names["isa"] == "portable"
    assert names["torch"] == torch.__version__
    assert "isa" not in numerics_id("float32", {"linear": "torch"})


def test_what_the_machine_lacks_is_refused_and_what_it_has_is_named() -> None:
    missing = [name for name in CPU_ISAS if name != "auto" and name not in supported_isas()]
    for name in missing:
        with pytest.raises(SpliceError, match=f"{name}.*it has .*portable") as refusal:
            choose_cpu_isa(name)
        assert refusal.value.code is ErrorCode.BAD_SETTING
        assert refusal.value.param == "cpu_isa"
    assert isa() in supported_isas()


def test_an_unknown_name_is_refused_by_the_kernels_too() -> None:
    with pytest.raises(ValueError, match="avx1024 is unknown"):
        Kernels("avx1024", 1)
    kernels = Kernels("auto", 1)
    with pytest.raises(ValueError, match="sse9 is unknown"):
        kernels.isa = "sse9"
    assert kernels.isa == supported_isas()[0]


def test_every_instruction_set_of_the_kernels_can_be_asked_for() -> None:
    assert {*supported_isas()} <= {*CPU_ISAS}
    assert EngineSettings().cpu_isa == "auto"


def test_what_was_packed_before_a_choice_serves_after_it() -> None:
    kernels, weight = Kernels("auto", 1), packed(random_blocks(40, 96, "q4_1"), 96, "q4_1")
    x = torch.randn(17, 96, generator=torch.Generator().manual_seed(3))
    before, after = torch.empty(17, 40), torch.empty(17, 40)
    kernels.linear(before, x, weight, None, int8=True)
    kernels.isa = "portable"
    kernels.linear(after, x, weight, None, int8=True)
    assert torch.equal(before, after)
