"""A worker whose device is lost ends: in the midst of a step, or when only a hand-off could notice."""

from __future__ import annotations

import queue
from pathlib import Path

import pytest
from role_bench import RoleBench, submit

from decode_worker.role import DecodeRole
from engine.device.device_lost import DeviceLost
from engine.scheduling.request import RequestKind
from kvtransfer.faults import DEVICE_LOST, FaultPlan
from wire.errors import SpliceError
from worker.engine_loop import EngineLoop
from worker.failing_model import FailingModel


def test_a_device_lost_in_a_step_ends_the_loop_and_nobody_is_told_of_a_failed_request(tiny: Path) -> None:
    bench = RoleBench(tiny, DecodeRole)
    bench.engine._model = FailingModel(bench.engine._model, FaultPlan.parse(["engine.device_lost@3"]))
    for number in (1, 2):
        bench.role.submit(RequestKind.GENERATE, submit(number), bench.session)
    loop = _loop_that_ends_of_it(bench)
    assert bench.session.codes == []
    assert len(bench.session.tokens) == 2 * 3
    assert loop.stop(5.0)


def test_a_device_lost_while_nothing_is_computed_ends_the_loop_too(tiny: Path) -> None:
    bench = RoleBench(tiny, DecodeRole)

    class Lost:
        def check_device(self) -> None:
            raise DeviceLost("cuEventQuery: an illegal memory access was encountered")

    bench.role._place = Lost()  # type: ignore[assignment]
    bench.now_s = 1.0
    loop = _loop_that_ends_of_it(bench)
    assert loop.stop(5.0)


def _loop_that_ends_of_it(bench: RoleBench[DecodeRole]) -> EngineLoop:
    ended: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
    loop = EngineLoop(bench.engine, ended.put)
    loop.start(bench.role)
    assert type(ended.get(timeout=30)) is DeviceLost
    return loop


def test_a_lost_device_stays_lost(tiny: Path) -> None:
    bench = RoleBench(tiny, DecodeRole)
    model = FailingModel(bench.engine._model, FaultPlan({DEVICE_LOST: 1}))
    for _ in range(3):
        with pytest.raises(DeviceLost):
            model.forward(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("flag", ["engine.device_lost@", "engine.device_lost@x=1", "engine.device_lost=-1"])
def test_fault_points_that_cannot_be_read_are_refused(flag: str) -> None:
    with pytest.raises(SpliceError, match="expected NAME"):
        FaultPlan.parse([flag])


def test_a_fault_lets_pass_what_it_was_told_to() -> None:
    plan = FaultPlan.parse(["engine.device_lost@2=2"])
    assert [plan.fires(DEVICE_LOST) for _ in range(6)] == [False, False, True, True, False, False]
