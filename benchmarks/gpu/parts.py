"""Python packages that travel as wheels: unpacked, not installed, and seen by every process of a check."""

from __future__ import annotations

import os
import sys
import sysconfig
import zipfile
from pathlib import Path

HEADERS_ONLY = "nvidia_cutlass"


def unpack_wheels(parts: Path, scratch: Path) -> list[str]:
    """Unpacks the wheels of `parts` that this Python can import, for this process and those it starts, and names them.

    A wheel of another Python is passed over, so that one folder serves several.
    """
    folder = scratch / "packages"
    names: list[str] = []
    for wheel in sorted(parts.glob("*.whl")):
        if wheel.name.startswith(HEADERS_ONLY) or not fits(wheel.name):
            continue
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        names.append("-".join(wheel.name.split("-")[:2]))
    if names:
        sys.path.insert(0, str(folder))
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *([before] if before else [])])
    return names


def fits(wheel: str) -> bool:
    """Whether a wheel's name (PEP 427) is for this Python and this kind of machine, or for any."""
    pieces = wheel.removesuffix(".whl").split("-")
    if len(pieces) < 5:
        return False
    pythons, abis, platforms = (piece.split(".") for piece in pieces[-3:])
    own = f"cp{sys.version_info.major}{sys.version_info.minor}"
    machine = sysconfig.get_platform().rpartition("-")[2]
    if "none" in abis:
        return "py3" in pythons and "any" in platforms
    stable = "abi3" in abis and any(_is_older(python, own) for python in pythons)
    return (own in pythons or stable) and any(platform.endswith(machine) for platform in platforms)


def _is_older(python: str, own: str) -> bool:
    return python.startswith("cp3") and int(python[3:] or 0) <= int(own[3:])
