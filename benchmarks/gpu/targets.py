"""The targets, and whether they are met: a line for each, with what was measured and what exactness costs.

A target is for the fast mode. The fast figure of a kernel is that of its fastest tile, the exact one that of the tiles
that keep a row's bits and one arithmetic; of an engine, that of measured tactics a bucket against its default.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.report import Measured, Report
from benchmarks.gpu.shares import shares

if TYPE_CHECKING:
    from benchmarks.gpu.tasks import Task

ENGINE_TARGETS = {(128, 128): 27_900, (1000, 1000): 17_700, (2048, 2048): 12_200}
"""(prompt, answer) in tokens: output tokens/s of an 8B model in FP8, the highest that were published for this GPU."""
STEP_TARGETS = {1: 1.15, 64: 1.25}
"""Sequences: times the floor."""
_PEER_TIMES, _PULL_SHARE, _EXPOSED_SHARE, _PUSHED_SHARE = 5.0, 0.80, 0.02, 0.002


@dataclass(frozen=True, slots=True)
class Point:
    """One figure for a target: `value` is to be `bound` or better."""

    name: str
    value: float
    bound: float
    at_most: bool = False
    exact: float | None = None
    """The same in the exact mode."""

    @property
    def part(self) -> float:
        """Of the target; 1 meets it."""
        return self.bound / self.value if self.at_most else self.value / self.bound

    @property
    def cost(self) -> float | None:
        """Of exactness: 0.05 is 5 % slower."""
        if self.exact is None or not self.exact or not self.value:
            return None
        return (self.exact / self.value if self.at_most else self.value / self.exact) - 1


@dataclass(frozen=True, slots=True)
class Verdict:
    what: str
    target: str
    measured: str
    verdict: str

    @property
    def line(self) -> str:
        return f"{self.what:44} {self.target:34} {self.verdict}: {self.measured}"


def verdicts(report: Report, wanted: Sequence[Task]) -> list[Verdict]:
    """Of every target. `wanted` are all measurements: they say why one is missing."""
    return [
        _verdict(report, wanted, what, target, goal, points)
        for what, target, goal, points in (
            *_of_attention(report),
            *_of_products(report),
            *_of_models(report),
            *_of_handoffs(report),
        )
    ]


Row = tuple[str, str, str, list[Point]]
"""(what, target, goal of its measurements, points)"""


def _of_attention(report: Report) -> Iterator[Row]:
    decode = [Point(one.name, memory, 0.85) for one, memory, _ in _shares(report, "decode attention")]
    yield "paged decode attention, 8B", "≥ 0.85 of copy bandwidth", "decode attention", decode
    parts: dict[str, float] = {}  # of the target; the best kernel counts
    for one, memory, matrix in _shares(report, "latents"):
        name = one.group or one.name
        parts[name] = max(parts.get(name, 0.0), memory / 0.75, matrix / 0.60)
    latent = [Point(name, part, 1.0) for name, part in parts.items()]
    yield "latent (MLA) decode attention", "≥ 0.75 of bandwidth or 0.60 of rate", "latents", latent
    prefill = [Point(one.name, matrix, 0.65) for one, _, matrix in _shares(report, "prefill attention")]
    prefill = sorted(prefill, key=lambda point: -point.value)[:1]  # of the kernels for it
    yield "prefill attention, causal, 8k", "≥ 0.65 of bf16 rate", "prefill attention", prefill
    rivals = list(_against_rivals(_of(report, "prefill attention"), 1.0))
    yield "the same", "≥ 1.0 × torch's flash SDPA", "prefill attention", rivals


def _of_products(report: Report) -> Iterator[Row]:
    for what, target, goal, bound in (
        ("FP8 products, 8B, M ≥ 1024", "≥ 1.0 × torch._scaled_mm", "fp8 products", 1.0),
        ("bf16 products, 8B, M ≥ 1024", "≥ 0.95 × torch.matmul", "bf16 products", 0.95),
        ("experts, Qwen3-30B-A3B and Mixtral", "≥ 1.5 × loop over experts", "experts", 1.5),
        ("the same, gate and up of 8192 tokens", "≥ 0.80 of the dense rate", "grouped products", 0.80),
        ("the same in FP8, rows in codes", "≥ 0.80 of the dense rate", "grouped fp8 products", 0.80),
    ):
        yield what, target, goal, list(_against_rivals(_of(report, goal), bound))


def _of_models(report: Report) -> Iterator[Row]:
    for sequences, bound in STEP_TARGETS.items():
        points = []
        if report.ceilings is not None:
            rate = report.ceilings.copy_bytes_per_s
            times = {
                one["mode"]: one["seconds"] * rate / one["floor_bytes"]
                for one in report.steps
                if (one["sequences"], one["context"], one["precision"]) == (sequences, 1024, "bf16")
            }
            points = _by_mode(f"{sequences} sequences at 1024", times, bound, at_most=True)
        yield f"decode step, 8B bf16, batch {sequences}", f"≤ {bound} × floor", f"step {sequences}", points
    for (prompt, answer), bound in ENGINE_TARGETS.items():
        times = _rates(report, prompt, answer, "fp8")
        points = _by_mode(f"{prompt}/{answer}", times, bound)
        yield f"engine, 8B FP8, {prompt}/{answer}", f"≥ {bound} output tokens/s", f"{prompt}/{answer}", points
    own = {one["mode"]: one["output_tokens_per_s"] for one in report.serving if one["at_once"]}
    peers = [one["output_tokens_per_s"] for one in report.peers if not one["error"]]
    ratios = {mode: rate / peers[-1] for mode, rate in own.items()} if peers else {}
    yield (
        "against transformers, continuous batching", f"≥ {_PEER_TIMES:.0f} ×", "transformers",
        _by_mode("64 of 128/128, 8B bf16", ratios, _PEER_TIMES),
    )  # fmt: skip


def _of_handoffs(report: Report) -> Iterator[Row]:
    pulls = [one for one in report.handoffs if not one["pushed"]]
    rates = [Point(one["name"], one["memcpy_seconds"] / one["pull_seconds"], _PULL_SHARE) for one in pulls]
    yield "KV hand-off, two processes on one GPU", f"≥ {_PULL_SHARE} of device memcpy", "hand-off", rates
    for what, bound, goal, pushed in (
        ("the same, exposed after a prefill of 8k", _EXPOSED_SHARE, "hand-off", False),
        ("the same, pushed", _PUSHED_SHARE, "push", True),
    ):
        exposed = [
            Point(one["name"], one["exposed_seconds"] / one["prefill_seconds"], bound, at_most=True)
            for one in report.handoffs
            if one["pushed"] is pushed
        ]
        yield what, f"≤ {bound} of the prefill's time", goal, exposed


def _verdict(report: Report, wanted: Sequence[Task], what: str, target: str, goal: str, points: list[Point]) -> Verdict:
    missing = [task.name for task in wanted if goal in task.goals and task.name not in report.done]
    if not points:
        return Verdict(what, target, _beside(report, goal), f"not measured: {_why(report, missing)}")
    worst = min(points, key=lambda point: point.part)
    said = "met" if worst.part >= 1 else f"missed by {(1 - worst.part) * 100:.0f} %"
    measured = f"{worst.value:.3g} ({worst.name})"
    if len(points) > 1:
        best = max(points, key=lambda point: point.part)
        met = sum(point.part >= 1 for point in points)
        measured += f", best {best.value:.3g}, {met} of {len(points)} meet it"
    costs = [point.cost for point in points if point.cost is not None]
    if costs:
        measured += f"; exactness costs {max(costs) * 100:.0f} % at most"
    if missing:
        measured += f"; {len(missing)} more not measured: {_why(report, missing)}"
    return Verdict(what, target, measured, said)


def _why(report: Report, missing: Sequence[str]) -> str:
    """Of the first that says why."""
    if not missing:
        return "no ceilings of this machine" if report.ceilings is None else "nothing here measures it yet"
    return next((report.missed[name][:200] for name in missing if name in report.missed), "not begun")


def _beside(report: Report, goal: str) -> str:
    """What comes nearest to a target that has no figure: the same engine in bfloat16."""
    prompt, _, answer = goal.partition("/")
    rates = _rates(report, int(prompt), int(answer), "bf16") if prompt.isdigit() else {}
    return ", ".join(f"in bf16, {mode}: {rate:.0f}" for mode, rate in rates.items()) or "nothing"


def _rates(report: Report, prompt: int, answer: int, precision: str) -> dict[str, float]:
    """By mode: output tokens/s."""
    wanted = (prompt, answer, precision, False)
    return {
        one["mode"]: one["output_tokens_per_s"]
        for one in report.serving
        if (one["prompt_tokens"], one["new_tokens"], one["precision"], one["at_once"]) == wanted
    }


def _by_mode(name: str, values: dict[str, float], bound: float, *, at_most: bool = False) -> list[Point]:
    """The fast one, beside the exact one; the exact one alone where there is no other, and it says so."""
    exact = values.get("deterministic")
    if "fast" in values:
        return [Point(name, values["fast"], bound, at_most, exact)]
    return [] if exact is None else [Point(f"{name}, deterministic", exact, bound, at_most)]


def _against_rivals(found: Sequence[Measured], bound: float) -> Iterator[Point]:
    """A point for each group: the least time of any tile against the least of any rival."""
    groups: dict[str, list[Measured]] = {}
    for one in found:
        groups.setdefault(one.group or one.name, []).append(one)
    for name, members in groups.items():
        ours = [one.seconds for one in members if one.seconds]
        exact = [one.seconds for one in members if one.seconds and one.is_exact]
        rivals = [one.rival_seconds for one in members if one.rival_seconds]
        if ours and rivals:
            yield Point(name, min(rivals) / min(ours), bound, exact=min(rivals) / min(exact) if exact else None)


def _of(report: Report, goal: str) -> list[Measured]:
    return [one for one in report.measured if one.goal == goal]


def _shares(report: Report, goal: str) -> Iterator[tuple[Measured, float, float]]:
    """Of those whose data exceeds the second-level cache."""
    cache = int(report.machine.get("l2_mib", "0")) << 20
    for one in _of(report, goal):
        if report.ceilings is not None and one.seconds and one.moved_bytes > cache:
            yield (one, *shares(one, report.ceilings))


def summary(found: Sequence[Verdict]) -> list[dict[str, Any]]:
    """For the result file."""
    return [{name: getattr(one, name) for name in Verdict.__slots__} for one in found]
