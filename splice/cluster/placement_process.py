"""The placement process as a child of the launcher: commands go in, reports come out."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

import msgspec

from splice.cluster.placement_job import Command, HeadReport, Job, PlacedReport, Report, StartHead
from wire.errors import ErrorCode, SpliceError

_LEAVE_S = 15.0
"""Longest that it may take beyond what a job itself allows."""


class PlacementProcess:
    """Started at once, so that it loads Ray while its first command is being made. A context manager: it ends with it.

    Every method raises SpliceError(missing_part) with its own words when it ends or stays silent instead of answering.
    """

    def __init__(self, environment: Mapping[str, str], log_path: Path) -> None:
        self._log_path = log_path
        with log_path.open("ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "splice.cluster.placement"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=dict(environment),
                start_new_session=True,
            )

    def __enter__(self) -> PlacementProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.kill()
        self._child.wait()

    def start_head(self, command: StartHead, timeout_s: float) -> None:
        for report in self._ask(command, timeout_s):
            if isinstance(report, HeadReport) and report.error is None:
                return
            if report.error is not None:
                code, message, param = report.error
                raise SpliceError(
                    ErrorCode(code), f"{message}; `splice doctor` checks what Ray needs. {self._words()}", param=param
                )
        raise self._failed(f"Ray did not start within {timeout_s:.0f} s")

    def run(self, job: Job) -> Iterator[PlacedReport]:
        """Yields reports as they come; the process leaves after the last of them."""
        for report in self._ask(job, job.timeout_s + _LEAVE_S):
            if isinstance(report, PlacedReport):
                yield report
        if self._child.wait() != 0:
            raise self._failed("placing workers through Ray failed")

    def _ask(self, command: Command, timeout_s: float) -> Iterator[Report]:
        assert self._child.stdin is not None  # noqa: S101 (a pipe was asked for)
        assert self._child.stdout is not None  # noqa: S101
        timer = threading.Timer(timeout_s, self._child.kill)
        timer.start()
        try:
            self._child.stdin.write(msgspec.json.encode(command) + b"\n")
            self._child.stdin.flush()
            while line := self._child.stdout.readline():
                yield msgspec.json.decode(line, type=Report)
        except BrokenPipeError:
            raise self._failed("the process that speaks Ray ended") from None
        finally:
            timer.cancel()

    def _failed(self, what: str) -> SpliceError:
        return SpliceError(ErrorCode.MISSING_PART, f"{what}: {self._words()}", param="ray")

    def _words(self) -> str:
        return self._log_path.read_text(errors="replace").strip()[-800:] or "(it said nothing)"
