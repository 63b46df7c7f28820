"""A program that may take so long, and no longer with all that it started."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

TIMED_OUT = 124


def run_limited(
    command: Sequence[str], limit_s: float, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """(exit code, what it said on both outputs). `TIMED_OUT` where it was ended, 127 where there is no such program."""
    try:
        process = subprocess.Popen(
            list(command), cwd=cwd, env={**os.environ, **(environment or {})}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", process_group=0,
        )  # fmt: skip
    except OSError as error:
        return 127, f"{command[0]} cannot be run: {error}"
    try:
        said, _ = process.communicate(timeout=limit_s)
        return process.returncode, said
    except subprocess.TimeoutExpired:
        end_group(process)
        said, _ = process.communicate()
        return TIMED_OUT, f"{said}\nnot done after {limit_s:.0f} s"
    except BaseException:
        end_group(process)
        raise


def end_group(process: subprocess.Popen[str]) -> None:
    """Of a process that leads a group: all of it. A checker's child would go on, and hold the output open."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
