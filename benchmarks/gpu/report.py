"""What a check of a GPU found: plain data that grows, is written after every step, and can be gone on from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.ceilings import Ceilings, Precision
from benchmarks.gpu.measuring import Outcome
from benchmarks.gpu.natives import Natives
from benchmarks.gpu.proofs import Proof
from benchmarks.gpu.units import Compiled

if TYPE_CHECKING:
    from benchmarks.gpu.tasks import Task

NOT_BEGUN = "not measured"
"""How the reason of a measurement begins for which there was no time."""
_SAME = ("gpu", "sources", "torch", "cuda")
"""Of the machine: where these differ, figures do not belong into one file."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One case. `rival_seconds` is None where nobody else does the same, `error` says why there is no time."""

    name: str
    seconds: float | None
    moved_bytes: int
    operations: int
    rival: str = ""
    rival_seconds: float | None = None
    error: str | None = None
    function: str = ""
    """Of splice_cuda.h."""
    precision: Precision = "bf16"
    goal: str = ""
    """See `cases.case.Case`, as the next two."""
    group: str = ""
    is_exact: bool = True


@dataclass(slots=True)
class Report:
    """Grows step by step and is written after each, so that a run cut short leaves what it has."""

    machine: dict[str, str]
    commit: str
    date: str
    units: list[Compiled] = field(default_factory=list)
    natives: Natives | None = None
    """None where they were there."""
    proofs: list[Proof] = field(default_factory=list)
    memory: list[Proof] = field(default_factory=list)
    ceilings: Ceilings | None = None
    measured: list[Measured] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    """`steps.StepTime` each: whole decode steps."""
    serving: list[dict[str, Any]] = field(default_factory=list)
    """`serving.Rate` each: what an engine gives out."""
    handoffs: list[dict[str, Any]] = field(default_factory=list)
    """`handoff.Handoff` each: KV from one process to another."""
    tactics: list[dict[str, Any]] = field(default_factory=list)
    """`engine.tuning.decision.Entry` each."""
    peers: list[dict[str, Any]] = field(default_factory=list)
    """`peers.PeerRate` each."""
    done: list[str] = field(default_factory=list)
    """Measurements that gave what they were begun for."""
    missed: dict[str, str] = field(default_factory=dict)
    """Measurements that did not, and why."""
    errors: list[str] = field(default_factory=list)
    """Other steps that failed as a whole."""
    notes: list[str] = field(default_factory=list)
    """What was left out, and why."""

    def take(self, task: Task, outcome: Outcome) -> None:
        """What came of a measurement; instead of what an earlier try came to."""
        self.missed.pop(task.name, None)
        error = outcome.error
        if error is None and task.kind == "ceilings":
            self.ceilings = Ceilings(**outcome.result)
        elif error is None and task.kind == "measured":
            found = Measured(**outcome.result)
            self.measured = [one for one in self.measured if one.name != found.name] + [found]
            error = found.error
        elif error is None:
            getattr(self, task.kind).extend(outcome.result)
        if error is None:
            self.done.append(task.name)
        else:
            self.missed[task.name] = error

    def prove(self, proof: Proof, *, under_a_checker: bool) -> None:
        """What came of a file's tests; instead of what an earlier run of it came to."""
        proofs = self.memory if under_a_checker else self.proofs
        proofs[:] = [one for one in proofs if one.name != proof.name] + [proof]

    def write(self, folder: Path) -> Path:
        """At once or not at all: whoever is ended meanwhile leaves the file before."""
        folder.mkdir(parents=True, exist_ok=True)
        name = self.machine.get("gpu", "none").lower().replace(" ", "-")
        path = folder / f"{name}-{self.date}.json"
        new = path.with_suffix(".new")
        new.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return new.replace(path)

    @property
    def failed(self) -> bool:
        """Whether anything that was tried did not succeed."""
        built = any(one.error is not None and not one.error.startswith("is for") for one in self.units)
        proven = any(proof.failures for proof in (*self.proofs, *self.memory))
        measured = any(not why.startswith(NOT_BEGUN) for why in self.missed.values())
        return built or proven or measured or bool(self.errors)


def read(path: Path) -> Report:
    """What `write` wrote. Raises ValueError for what is no report."""
    try:
        data = json.loads(path.read_text())
        report = Report(**{each.name: data[each.name] for each in fields(Report)})
        report.units = [Compiled(**one) for one in report.units]  # type: ignore[arg-type]
        report.natives = Natives(**_with_tuples(data["natives"])) if data["natives"] else None
        report.proofs, report.memory = (
            [Proof(**_with_tuples(one)) for one in data[name]] for name in ("proofs", "memory")
        )
        report.ceilings = Ceilings(**data["ceilings"]) if data["ceilings"] else None
        report.measured = [Measured(**one) for one in data["measured"]]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no result of a check: {error!r}") from error
    return report


def resumed(path: Path, machine: dict[str, str], commit: str) -> Report:
    """The report of a run that was cut short, to go on with here. Raises ValueError where that was another GPU or
    torch, or other kernels."""
    report = read(path)
    other = [name for name in _SAME if report.machine.get(name) != machine.get(name)]
    if other:
        said = ", ".join(f"{name} was {report.machine.get(name)} and is {machine.get(name)}" for name in other)
        raise ValueError(f"{path} cannot be gone on with: {said}")
    report.errors.clear()  # both are said again where they still hold
    report.notes.clear()
    if report.commit != commit:
        report.notes.append(f"begun at commit {report.commit}, with the same kernels")
        report.commit = commit
    return report


def _with_tuples(data: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
