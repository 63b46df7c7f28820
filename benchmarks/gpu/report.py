"""What a check of a GPU found, as a file and as a table."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.ceilings import Ceilings, Precision
from benchmarks.gpu.measuring import Outcome
from benchmarks.gpu.proofs import Proof
from benchmarks.gpu.units import ROOT, Compiled

if TYPE_CHECKING:
    from benchmarks.gpu.tasks import Task


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


@dataclass(slots=True)
class Report:
    """Grows step by step and is written after each, so that a run cut short leaves what it has."""

    machine: dict[str, str]
    commit: str
    date: str
    units: list[Compiled] = field(default_factory=list)
    proofs: list[Proof] = field(default_factory=list)
    memory: list[Proof] = field(default_factory=list)
    ceilings: Ceilings | None = None
    measured: list[Measured] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    """`steps.StepTime` each: whole decode steps."""
    tactics: list[dict[str, Any]] = field(default_factory=list)
    """`engine.tuning.decision.Entry` each."""
    peers: list[dict[str, Any]] = field(default_factory=list)
    """`peers.PeerRate` each."""
    errors: list[str] = field(default_factory=list)
    """Measurements that failed as a whole."""
    notes: list[str] = field(default_factory=list)
    """Steps that were left out, and why."""

    def take(self, task: Task, outcome: Outcome) -> None:
        """What came of a measurement."""
        if outcome.error is not None:
            left_out = outcome.error.startswith("not measured")
            (self.notes if left_out else self.errors).append(f"{task.name}: {outcome.error}")
        elif task.kind == "ceilings":
            self.ceilings = Ceilings(**outcome.result)
        elif task.kind == "measured":
            self.measured.append(Measured(**outcome.result))
        else:
            getattr(self, task.kind).extend(outcome.result)

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        name = self.machine.get("gpu", "none").lower().replace(" ", "-")
        path = folder / f"{name}-{self.date}.json"
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return path

    @property
    def failed(self) -> bool:
        """Whether anything that was tried did not succeed."""
        built = any(one.error is not None and not one.error.startswith("is for") for one in self.units)
        proven = any(proof.failures for proof in (*self.proofs, *self.memory))
        return built or proven or bool(self.errors) or any(one.error is not None for one in self.measured)


def commit() -> str:
    """Of the tree this ran from, `unknown` outside a repository; with `+` where files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def table(report: Report) -> str:
    """For people: units, proofs, then times with their shares of the measured ceilings."""
    lines = [f"{report.machine.get('gpu', 'no GPU')}, {report.date}, commit {report.commit}", ""]
    lines += [_unit_line(one) for one in report.units] + [""]
    lines += [_proof_line("tests", one) for one in report.proofs]
    lines += [_proof_line("memory", one) for one in report.memory] + [""]
    ceilings = report.ceilings
    if ceilings is not None:
        copy, bf16, fp8 = (rate / 1e12 for rate in astuple(ceilings))
        lines.append(f"copy {copy:.2f} TB/s, bf16 product {bf16:.0f} TFLOP/s, fp8 product {fp8:.0f} TFLOP/s")
        lines.append(f"{'':58} {'µs':>9} {'GB/s':>7} {'%':>4} {'TFLOP/s':>8} {'%':>4}  against")
        lines += [_measured_line(one, ceilings) for one in report.measured]
        lines += [_step_line(one, ceilings) for one in report.steps]
    lines += [_tactic_line(one) for one in report.tactics]
    lines += [_cost_line(shape, costs) for shape, costs in exactness_costs(report.tactics).items()]
    lines += [_peer_line(one) for one in report.peers]
    lines += [f"failed: {error}" for error in report.errors]
    return "\n".join([*lines, *(f"note: {note}" for note in report.notes)])


def shares(one: Measured, ceilings: Ceilings) -> tuple[float, float]:
    """Of the measured copy bandwidth and matrix rate. Zero where there is no time."""
    if not one.seconds:
        return 0.0, 0.0
    return (
        one.moved_bytes / one.seconds / ceilings.copy_bytes_per_s,
        one.operations / one.seconds / ceilings.flop_per_s(one.precision),
    )


def _measured_line(one: Measured, ceilings: Ceilings) -> str:
    if one.seconds is None:
        return f"{one.name:58} {one.error}"
    memory, matrix = shares(one, ceilings)
    against = one.rival if one.rival_seconds is None else f"{one.rival_seconds / one.seconds:.2f} × {one.rival}"
    return (
        f"{one.name:58} {one.seconds * 1e6:9.1f} {one.moved_bytes / one.seconds / 1e9:7.0f} {memory * 100:4.0f} "
        f"{one.operations / one.seconds / 1e12:8.1f} {matrix * 100:4.0f}  {against}"
    )


def _step_line(one: dict[str, Any], ceilings: Ceilings) -> str:
    floor = one["floor_bytes"] / ceilings.copy_bytes_per_s
    queued = f"host {one['host_seconds'] * 1e6:.0f} µs"
    return f"{one['name']:58} {one['seconds'] * 1e6:9.1f} {one['seconds'] / floor:.2f} × its floor, {queued}"


def _tactic_line(entry: dict[str, Any]) -> str:
    left_out = {trial["tactic"] for trial in entry["trials"] if trial["seconds"] is None}
    chosen = ", ".join(f"{bucket or 'all'}: {name}" for bucket, name in entry["chosen"]) or "none"
    said = f"; left out: {', '.join(sorted(left_out))}" if left_out else ""
    return f"tactic {entry['mode']} {_shape(entry)}: {chosen}{said}"


def exactness_costs(tactics: Sequence[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """By shape and rows: the time of deterministic mode's tactic over that of fast mode's, as the fast entry's trials
    have them; of buckets where both were timed."""
    costs: dict[str, dict[int, float]] = {}
    always = {_shape(entry): entry["chosen"][0][1] for entry in tactics if _is_chosen(entry, "deterministic")}
    for entry in tactics:
        name = _shape(entry)
        if not _is_chosen(entry, "fast") or name not in always:
            continue
        times = {(trial["tactic"], trial["bucket"]): trial["seconds"] for trial in entry["trials"]}
        costs[name] = {}
        for bucket, tactic in entry["chosen"]:
            exact, fastest = times.get((always[name], bucket)), times.get((tactic, bucket))
            if exact and fastest:
                costs[name][bucket] = exact / fastest
    return costs


def _is_chosen(entry: dict[str, Any], mode: str) -> bool:
    return bool(entry["mode"] == mode and entry["chosen"])


def _shape(entry: dict[str, Any]) -> str:
    shape = entry["shape"]
    return f"{shape['op']} {shape['n']}x{shape['k']}"


def _cost_line(shape: str, costs: dict[int, float]) -> str:
    each = ", ".join(f"{bucket} rows {cost:.2f}" for bucket, cost in costs.items())
    return f"cost of exactness, {shape}: {each}"


def _peer_line(one: dict[str, Any]) -> str:
    return f"{one['name']}: " + (one["error"] or f"{one['output_tokens_per_s']:.0f} output tokens/s")


def _unit_line(one: Compiled) -> str:
    if one.error is not None:
        return f"unit {one.name}: not built: {one.error.strip().splitlines()[-1][:300]}"
    return f"unit {one.name}: {one.seconds:.0f} s, {one.registers} registers, {one.spilled_bytes} bytes spilled"


def _proof_line(kind: str, one: Proof) -> str:
    counts = f"{one.passed} passed, {one.skipped} skipped, {len(one.failures)} failed"
    head = f"{kind} {one.name}: {counts}, {one.seconds:.0f} s"
    return "\n".join([head, *(f"    {failure[:400]}" for failure in _first(one.failures))])


def _first(failures: Sequence[str]) -> Sequence[str]:
    return failures[:5]
