"""`python -m benchmarks.gpu.measuring_process PLAN FIRST SHARED`: runs the tasks that the file PLAN names, from number
FIRST on, and says of each, on a line, what came of it; SHARED is the folder for what they share.

A kernel that ends the process or the GPU's context ends this one: `measuring` starts another after it.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.tasks import Task, tasks
from engine.ops.cuda.library import Library

LOST = 3
"""Exit code where the device is no more to be used."""


def main() -> int:
    faulthandler.enable()  # whoever ends it wants to know where it was
    plan, first, shared = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    library, known = Library(), {task.name: task for task in tasks()}
    for index, name in list(enumerate(json.loads(plan.read_text())))[first:]:
        _say({"begun": index})
        _say({"index": index} | _outcome(known[name], library, shared))
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            print(f"the device was lost: {error}", file=sys.stderr)
            return LOST
        gc.collect()
        torch.cuda.empty_cache()
    return 0


def _outcome(task: Task, library: Library, shared: Path) -> dict[str, Any]:
    """Whatever a measurement raises is its result: others have nothing to do with it."""
    try:
        return {"result": task.run(library, shared)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error)[:600]}"}


def _say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())
