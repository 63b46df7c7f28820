"""What a check of a GPU found, for people: targets first and last, everything between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.proofs import Proof
from benchmarks.gpu.report import NOT_BEGUN, Measured, Report
from benchmarks.gpu.shares import shares
from benchmarks.gpu.units import Compiled

_SHOWN = 5
"""Of a file's failures."""


def table(report: Report) -> str:
    """Units, proofs, then times with their shares of the measured ceilings."""
    lines = [f"{report.machine.get('gpu', 'no GPU')}, {report.date}, commit {report.commit}", ""]
    lines += [_unit_line(one) for one in report.units] + [""]
    if report.natives is not None:
        lines.append(f"native modules: {report.natives.error or ', '.join(report.natives.built)}")
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
    lines += [_rate_line(one) for one in report.serving]
    lines += [_handoff_line(one) for one in report.handoffs]
    late = [name for name, why in report.missed.items() if why.startswith(NOT_BEGUN)]
    lines += [f"failed: {name}: {why}" for name, why in report.missed.items() if name not in late]
    lines += [f"failed: {error}" for error in report.errors]
    if late:
        lines.append(f"no time for {len(late)} measurements: {', '.join(late[:_SHOWN])}{', …' * (len(late) > _SHOWN)}")
    return "\n".join([*lines, *(f"note: {note}" for note in report.notes)])


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


def _rate_line(one: dict[str, Any]) -> str:
    batch = f"{one['rows_of_a_step']:.0f} rows and {one['seconds_of_a_step'] * 1e3:.1f} ms a step"
    return f"{one['name']}: {one['output_tokens_per_s']:.0f} output tokens/s, {batch}"


def _handoff_line(one: dict[str, Any]) -> str:
    rate, peer = (2 * one["kv_bytes"] / one[name] / 1e9 for name in ("pull_seconds", "memcpy_seconds"))
    exposed = f"{one['exposed_seconds'] * 1e3:.2f} ms after a prefill of {one['prefill_seconds'] * 1e3:.0f} ms"
    return f"{one['name']}: {rate:.0f} GB/s, device memcpy {peer:.0f} GB/s; exposed {exposed}"


def _unit_line(one: Compiled) -> str:
    if one.error is not None:
        return f"unit {one.name}: not built: {one.error.strip().splitlines()[-1][:300]}"
    return f"unit {one.name}: {one.seconds:.0f} s, {one.registers} registers, {one.spilled_bytes} bytes spilled"


def _proof_line(kind: str, one: Proof) -> str:
    counts = f"{one.passed} passed, {one.skipped} skipped, {len(one.failures)} failed"
    head = f"{kind} {one.name}: {counts}, {one.seconds:.0f} s"
    said = [f"    {failure[:400]}" for failure in one.failures[:_SHOWN]]
    return "\n".join([head, *said, *(f"    skipped: {reason[:200]}" for reason in one.reasons[:_SHOWN])])
