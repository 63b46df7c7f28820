"""Everything that is measured, each by itself: the machine, kernels, whole steps, hand-offs, engines, tactics.

In the order of what it is worth: where time runs out, what is left is what no target is about. A task returns what goes
into the result file, as plain data. What it needs is imported and allocated when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from benchmarks.gpu.cases import cases
from benchmarks.gpu.cases.case import HIDDEN, WIDE, Case
from benchmarks.gpu.model import WeightFormat
from benchmarks.gpu.targets import ENGINE_TARGETS, STEP_TARGETS
from engine.ops.cuda.library import Library
from engine.tuning.decision import Mode
from engine.tuning.shapes import Shape
from wire.errors import SpliceError

Kind = Literal["ceilings", "measured", "steps", "handoffs", "serving", "peers", "tactics"]
"""The field of `report.Report` that the result goes to."""
MODES: tuple[Mode, ...] = ("deterministic", "fast")
_WINDOW_S = 10.0
_SHAPES = (
    Shape("linear", 6144, HIDDEN),
    Shape("linear", HIDDEN, HIDDEN),
    Shape("linear", 2 * WIDE, HIDDEN),
    Shape("linear", HIDDEN, WIDE),
    Shape("add_rms_norm", HIDDEN, HIDDEN),
    Shape("silu_mul", WIDE, 2 * WIDE),
)
_FP8_SHAPES = tuple(
    Shape(op, n, k)
    for op in ("fp8_codes", "fp8_block_codes", "fp8_weights")
    for n, k in ((6144, HIDDEN), (2 * WIDE, HIDDEN), (HIDDEN, WIDE))
)


@dataclass(frozen=True, slots=True)
class Task:
    name: str
    kind: Kind
    limit_s: float
    run: Callable[[Library, Path], Any]
    """Of the library, and a folder for what measurements of a run share."""
    goals: tuple[str, ...] = ()
    """The targets it is a figure for, as `targets` names them."""


def tasks() -> list[Task]:
    """The same list in every process of a run."""
    kernels = [_of_case(case) for case in cases()]
    return [
        Task("ceilings", "ceilings", 30, _ceilings),
        *(task for task in kernels if task.goals),
        *(each(mode) for mode in MODES for each in (_steps, _at_once)),
        *(each for mode in reversed(MODES) for each in _in_fp8(mode)),
        Task("transformers", "peers", 150, _transformers, ("transformers",)),
        Task("hand-off", "handoffs", 120, _handoff, ("hand-off",)),
        Task("hand-off, pushed", "handoffs", 120, _pushed_handoff, ("push",)),
        *_serving(),
        *(task for task in kernels if not task.goals),
        *(Task(f"tactics, {mode}", "tactics", 120, partial(_tuned, mode)) for mode in MODES),
    ]


def _ceilings(library: Library, shared: Path) -> dict[str, Any]:
    from benchmarks.gpu.ceilings import measure  # noqa: PLC0415

    del library, shared
    return asdict(measure())


def _of_case(case: Case) -> Task:
    return Task(case.name, "measured", 40, partial(_case, case), (case.goal,) if case.goal else ())


def _case(case: Case, library: Library, shared: Path) -> dict[str, Any]:
    from benchmarks.gpu.report import Measured  # noqa: PLC0415
    from benchmarks.gpu.timing import seconds_of  # noqa: PLC0415

    del shared
    known = Measured(
        case.name, None, case.moved_bytes, case.operations, function=case.function, precision=case.precision,
        goal=case.goal, group=case.group, is_exact=case.is_exact,
    )  # fmt: skip
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


def _steps(mode: Mode, weights: WeightFormat = "bf16") -> Task:
    def run(library: Library, shared: Path) -> list[dict[str, Any]]:
        from benchmarks.gpu import steps  # noqa: PLC0415 (the engine, which needs more than torch)

        del library
        return steps.measure(mode, weights, shared)

    goals = tuple(f"step {size}" for size in STEP_TARGETS) if weights == "bf16" else ()
    return Task(f"decode steps, {weights}, {mode}", "steps", 90, run, goals)


def _at_once(mode: Mode) -> Task:
    from benchmarks.gpu.peers import NEW_TOKENS, PROMPT_TOKENS  # noqa: PLC0415

    return _engine(mode, "bf16", PROMPT_TOKENS, NEW_TOKENS, None, ("transformers",))


def _in_fp8(mode: Mode) -> Iterator[Task]:
    """Engines before steps: it is them that targets are for."""
    for prompt, answer in ENGINE_TARGETS:
        yield _engine(mode, "fp8", prompt, answer, _WINDOW_S, (f"{prompt}/{answer}",))
    yield _steps(mode, "fp8")


def _serving() -> Iterator[Task]:
    for mode in reversed(MODES):
        for prompt, answer in ENGINE_TARGETS:
            yield _engine(mode, "bf16", prompt, answer, _WINDOW_S, ())


def _engine(
    mode: Mode, weights: WeightFormat, prompt: int, answer: int, window_s: float | None, goals: tuple[str, ...]
) -> Task:
    def run(library: Library, shared: Path) -> list[dict[str, Any]]:
        from benchmarks.gpu import serving  # noqa: PLC0415 (the engine)

        del library
        return serving.measure(mode, weights, shared, prompt, answer, window_s=window_s)

    what = f"{prompt}/{answer}" + (" at once" if window_s is None else "")
    return Task(f"engine, 8B {weights}, {mode}, {what}", "serving", 120, run, goals)


def _transformers(library: Library, shared: Path) -> list[dict[str, Any]]:
    from benchmarks.gpu.peers import transformers_rate  # noqa: PLC0415

    del library, shared
    _forget_models()
    return [asdict(transformers_rate())]


def _handoff(library: Library, shared: Path) -> list[dict[str, Any]]:
    from benchmarks.gpu import handoff  # noqa: PLC0415 (kvtransfer, and the engine in another process)

    del library, shared
    _forget_models()
    return handoff.measure()


def _pushed_handoff(library: Library, shared: Path) -> list[dict[str, Any]]:
    from benchmarks.gpu import pushed_handoff  # noqa: PLC0415 (as above)

    del library, shared
    _forget_models()
    return pushed_handoff.measure()


def _forget_models() -> None:
    """Their memory is for others."""
    from benchmarks.gpu.model import forget  # noqa: PLC0415

    forget()


def _tuned(mode: Mode, library: Library, shared: Path) -> list[dict[str, Any]]:
    import torch  # noqa: PLC0415

    from benchmarks.gpu.model import short_tuner  # noqa: PLC0415
    from engine.tuning.operations import TunedMatrices, TunedOperations  # noqa: PLC0415

    made: list[dict[str, Any]] = []
    by_matrices: tuple[tuple[TunedMatrices, tuple[Shape, ...]], ...] = (("bfloat16", _SHAPES), ("fp8", _FP8_SHAPES))
    for matrices, shapes in by_matrices:
        tuned = TunedOperations(library, torch.device("cuda"), mode, matrices=matrices)
        made += map(asdict, short_tuner(tuned, library, shared).tune(shapes, mode).entries)
    return made
