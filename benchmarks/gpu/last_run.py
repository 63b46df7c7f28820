"""`python -m benchmarks.gpu.last_run [--write]`: kernels' heads against the committed results.

The head of each source with kernels says when they last ran on which GPU, or that they have not. What is true is in
`benchmarks/results/gpu`: a source ran where a case of one of its functions has a time. Without `--write` heads that
differ are named and the exit code is 1; with it they are rewritten.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.units import ROOT, SOURCES, launches

RESULTS = ROOT / "benchmarks" / "results" / "gpu"
_GAP = r"(?:\s|//)+"
_NOT_YET = _GAP.join(("not", "yet", "run", "on", "a", "GPU"))
_LAST = _GAP.join(("last", "run", "on", r"(?P<gpu>[^,]+),", r"(?P<date>[\d-]{10}),", "commit", r"(?P<commit>[\w+]+)"))
_STATEMENT = re.compile(f"{_NOT_YET}|{_LAST}")


@dataclass(frozen=True, slots=True)
class Run:
    gpu: str
    date: str
    commit: str

    def __str__(self) -> str:
        return f"last run on {self.gpu}, {self.date}, commit {self.commit}"


def stated(text: str) -> Run | None:
    """What a source's head says; None: not yet. Raises ValueError where it says neither."""
    head = text[: text.index("#include")]
    match = _STATEMENT.search(head)
    if match is None:
        raise ValueError("its head says neither `not yet run on a GPU` nor `last run on GPU, DATE, commit COMMIT`")
    if match["gpu"] is None:
        return None
    return Run(re.sub(_GAP, " ", match["gpu"]), match["date"], match["commit"])


def latest(functions: set[str], results: Mapping[str, Any]) -> Run | None:
    """The last of the results (by file name) in which one of the functions has a time."""
    runs = [
        Run(result["machine"].get("gpu", "unknown"), result["date"], result["commit"])
        for result in results.values()
        if any(one["function"] in functions and one["seconds"] for one in result["measured"])
    ]
    return max(runs, key=lambda run: run.date, default=None)


def committed(folder: Path = RESULTS) -> dict[str, Any]:
    """Results by file name."""
    return {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def disagreements(sources: Mapping[str, str], results: Mapping[str, Any]) -> dict[str, str]:
    """Sources, by name with their text, whose head is not what the results say, and what is wrong."""
    found: dict[str, str] = {}
    for name, text in sources.items():
        functions = launches(text)
        if not functions:
            continue
        try:
            says, is_so = stated(text), latest(functions, results)
        except ValueError as error:
            found[name] = str(error)
            continue
        if says != is_so:
            found[name] = f"its head says {says or 'not yet run on a GPU'}, the results {is_so or 'not yet'}"
    return found


def corrected(text: str, run: Run | None) -> str:
    """The source with the statement in its head replaced."""
    return _STATEMENT.sub("not yet run on a GPU" if run is None else str(run), text, count=1)


def main() -> int:
    sources = {path.name: path.read_text() for path in sorted(SOURCES.glob("*.cu"))}
    results = committed()
    wrong = disagreements(sources, results)
    for name, complaint in wrong.items():
        print(f"{name}: {complaint}")
        if "--write" in sys.argv:
            (SOURCES / name).write_text(corrected(sources[name], latest(launches(sources[name]), results)))
    return int(bool(wrong) and "--write" not in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
