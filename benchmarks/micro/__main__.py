"""`python -m benchmarks.micro [--update]`: exit code 1 when something costs more than its baseline allows."""

from __future__ import annotations

import sys

import msgspec

from benchmarks.micro.gate import BASELINE, Baseline, Finding, judge_all, read_baseline, this_platform, updated


def main(words: list[str]) -> int:
    if words not in ([], ["--update"]):
        sys.stderr.write("usage: python -m benchmarks.micro [--update]\n")
        return 2
    platform = this_platform()
    if words:
        before = read_baseline() if BASELINE.exists() else Baseline({}, {})
        BASELINE.write_bytes(msgspec.json.format(msgspec.json.encode(updated(before, platform))) + b"\n")
        return 0
    baseline = read_baseline()
    if platform.python not in baseline.counts:
        sys.stdout.write(f"no counts were recorded for Python {platform.python}: they are not judged\n")
    if platform.instruction_set not in baseline.ratios:
        sys.stdout.write(f"no ratios were recorded for {platform.instruction_set}: they are not judged\n")
    findings = judge_all(baseline, platform)
    for finding in findings:
        sys.stdout.write(_line(finding) + "\n")
    worse = sum(finding.is_worse for finding in findings)
    if worse:
        sys.stdout.write(
            f"{worse} of {len(findings)} cost more than they may. If that is meant, say why in the commit and record "
            "it: python -m benchmarks.micro --update\n"
        )
    return 1 if worse else 0


def _line(finding: Finding) -> str:
    if finding.baseline is None:
        return f"  new    {finding.case:<58} {finding.measured:>12.6g}"
    word = "WORSE " if finding.is_worse else "ok    "
    return (
        f"  {word} {finding.case:<58} {finding.measured:>12.6g}  {finding.measured / finding.baseline:6.3f} × baseline"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
