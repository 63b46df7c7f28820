"""What `splice doctor` says of one part of a machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    part: str
    verdict: Literal["ok", "missing", "optional"]
    found: str
    remedy: str = ""
