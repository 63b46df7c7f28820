"""What ptxas says of the kernels it made (`-Xptxas=-v`): nothing of it shows in a result, all of it in the time."""

from __future__ import annotations

import re
from dataclasses import dataclass

_KERNEL = re.compile(
    r"Compiling entry function '(?P<name>[^']+)' for '(?P<architecture>\w+)'"
    r".*?(?P<local>\d+) bytes stack frame, (?P<stored>\d+) bytes spill stores"
    r".*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)
_SERIALISED = re.compile(r"[^\n]*(?:C7510|wgmma[^\n]*serialized)[^\n]*")


@dataclass(frozen=True, slots=True)
class MachineCode:
    kernel: str
    """Its mangled name."""
    architecture: str
    registers: int
    local_bytes: int
    """Of local memory a thread: what registers were too few for, and arrays whose places are not constant."""


def machine_code(said: str) -> list[MachineCode]:
    """Of every kernel in the compiler's output."""
    return [
        MachineCode(one["name"], one["architecture"], int(one["registers"]), int(one["local"]))
        for one in _KERNEL.finditer(said)
    ]


def serialised_products(said: str) -> list[str]:
    """Where ptxas waits for each wgmma before the next, which costs most of their rate: its own lines."""
    return [line.strip() for line in _SERIALISED.findall(said)]
