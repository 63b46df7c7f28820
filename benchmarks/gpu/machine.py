"""Where a check runs, and what of."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from benchmarks.gpu.limited import run_limited
from benchmarks.gpu.units import ROOT
from engine.ops.cuda.sources import sources_digest

COMMIT_FILE = "commit"
"""In the folder of parts: what a tree that travels without its repository was checked out from."""
_GIT_S = 20.0


def machine() -> dict[str, str]:
    """What a result was measured on and with."""
    found = {
        "torch": str(torch.__version__),
        "cuda": str(torch.version.cuda),
        "python": sys.version.split()[0],
        "sources": sources_digest(),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "multiprocessors": str(properties.multi_processor_count),
            "memory_gib": f"{properties.total_memory / 2**30:.0f}",
            "l2_mib": f"{properties.L2_cache_size / 2**20:.0f}",
        }
    return found


def commit(said: str | None, parts: Path) -> str:
    """What was said, else that of the repository, with `+` where files differ from it, else what stands in `parts`."""
    if said:
        return said
    code, output = run_limited(
        ("git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=12"), _GIT_S, ROOT
    )
    if code == 0 and output.strip():
        return output.strip()
    carried = parts / COMMIT_FILE
    return carried.read_text().strip() if carried.exists() else "unknown"
