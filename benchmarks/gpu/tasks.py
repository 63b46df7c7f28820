"""Everything that is measured, in order, each by itself: the machine, kernels, tactics, whole steps, others' engines.

A task returns what goes into the result file, as plain data. What it needs is imported and allocated when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

from benchmarks.gpu.cases import cases
from benchmarks.gpu.cases.case import HIDDEN, WIDE, Case
from engine.ops.cuda.library import Library
from engine.tuning.decision import Mode
from engine.tuning.shapes import Shape
from wire.errors import SpliceError

Kind = Literal["ceilings", "measured", "tactics", "steps", "peers"]
"""The field of `report.Report` that the result goes to."""
MODES: tuple[Mode, ...] = ("fast", "deterministic")
_TUNED_ROWS = (1, 16, 64, 256, 1024, 8192)
_TUNED_SHAPES = (
    Shape("linear", 6144, HIDDEN),
    Shape("linear", HIDDEN, HIDDEN),
    Shape("linear", 2 * WIDE, HIDDEN),
    Shape("linear", HIDDEN, WIDE),
    Shape("add_rms_norm", HIDDEN, HIDDEN),
    Shape("silu_mul", WIDE, 2 * WIDE),
)


@dataclass(frozen=True, slots=True)
class Task:
    name: str
    kind: Kind
    limit_s: float
    run: Callable[[Library], Any]


def tasks() -> list[Task]:
    """The same list in every process of a run."""
    return [
        Task("ceilings", "ceilings", 30, _ceilings),
        *(Task(case.name, "measured", 40, partial(_case, case)) for case in cases()),
        *_steps(),
        *_tactics(),
        *_peers(),
    ]


def _ceilings(library: Library) -> dict[str, Any]:
    from benchmarks.gpu.ceilings import measure  # noqa: PLC0415

    del library
    return asdict(measure())


def _case(case: Case, library: Library) -> dict[str, Any]:
    from benchmarks.gpu.report import Measured  # noqa: PLC0415
    from benchmarks.gpu.timing import seconds_of  # noqa: PLC0415

    known = Measured(
        case.name, None, case.moved_bytes, case.operations, function=case.function, precision=case.precision
    )
    try:
        if not library.has(case.function):
            raise LookupError(f"{case.function} was not built")
        measured = replace(known, seconds=seconds_of(case.make(library)))
    except (RuntimeError, SpliceError, LookupError) as error:
        return asdict(replace(known, error=str(error)[:300]))
    if case.rival is None:
        return asdict(measured)
    try:
        return asdict(replace(measured, rival=case.rival_name, rival_seconds=seconds_of(case.rival())))
    except (RuntimeError, SpliceError) as error:
        return asdict(replace(measured, rival=f"{case.rival_name}: {str(error)[:200]}"))


def _steps() -> Iterator[Task]:
    def run(library: Library) -> list[dict[str, Any]]:
        from benchmarks.gpu import steps  # noqa: PLC0415 (the engine, which needs more than torch)

        del library
        return steps.as_data(steps.measure())

    yield Task("decode steps", "steps", 90, run)


def _tactics() -> Iterator[Task]:
    for mode in MODES:
        yield Task(f"tactics, {mode}", "tactics", 60, partial(_tuned, mode))


def _tuned(mode: Mode, library: Library) -> list[dict[str, Any]]:
    import torch  # noqa: PLC0415

    from engine.tuning.graph_timer import GraphTimer  # noqa: PLC0415
    from engine.tuning.products import linear  # noqa: PLC0415
    from engine.tuning.row_operations import add_norm, silu_mul  # noqa: PLC0415
    from engine.tuning.tuner import Tuner  # noqa: PLC0415

    device = torch.device("cuda")
    tunables = [make(library, device) for make in (linear, add_norm, silu_mul)]
    tuner = Tuner(tunables, GraphTimer(repeats=7), buckets=_TUNED_ROWS)
    return [asdict(entry) for entry in tuner.tune(_TUNED_SHAPES, mode).entries]


def _peers() -> Iterator[Task]:
    def run(library: Library) -> list[dict[str, Any]]:
        from benchmarks.gpu.peers import transformers_rate  # noqa: PLC0415

        del library
        return [asdict(transformers_rate())]

    yield Task("transformers", "peers", 120, run)
