"""Which sources a library was compiled from: a digest that its build computes and a clone can compute again."""

from __future__ import annotations

import hashlib
from pathlib import Path

IN_A_CLONE = Path(__file__).resolve().parents[3] / "csrc" / "cuda"
"""Not there where the package was installed."""


def sources_digest(folder: Path = IN_A_CLONE) -> str:
    """Of all that the library is compiled from, 16 hexadecimal digits; csrc/cuda/CMakeLists.txt computes the same."""
    files = sorted(path for pattern in ("*.cu", "*.h", "units.txt") for path in folder.glob(pattern))
    lines = (f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
