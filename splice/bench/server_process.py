"""Starts a server as its user would, waits until it answers, and ends all of it."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from splice.bench.connection import parse_target
from splice.bench.load import fetch
from splice.bench.process_tree import MARK, ServerTree
from splice.settings.environment import child_environment
from wire.errors import ErrorCode, SpliceError

_POLL_S = 0.02
_TAIL = 2000


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """How to start a server. `{port}` in a word of `command` or in `url` is a free port."""

    name: str
    command: Sequence[str]
    url: str
    ready_path: str
    environment: Mapping[str, str]
    folder: Path | None
    start_timeout_s: float
    stop_timeout_s: float


@dataclass(frozen=True, slots=True)
class RunningServer:
    url: str
    tree: ServerTree
    spawned_s: float
    """On `time.perf_counter()`."""
    ready_s: float
    """After `spawned_s`."""


@contextlib.contextmanager
def running_server(server: ServerCommand, log_path: Path) -> Iterator[RunningServer]:
    """Everything the server started is gone when the block has ended. Raises SpliceError if it does not get ready."""
    port = str(_free_port())
    mark = uuid.uuid4().hex
    words = [word.replace("{port}", port) for word in server.command]
    url = server.url.replace("{port}", port)
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        spawned_s = time.perf_counter()
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=server.folder,
                env=child_environment({**server.environment, MARK: mark}),
                start_new_session=True,
            )
        except OSError as error:
            raise SpliceError(
                ErrorCode.MISSING_PART, f"cannot start {server.name}: {words[0]}: {error.strerror}", param="command"
            ) from None
    tree = ServerTree(process.pid, mark)
    try:
        _wait_ready(server, process, url, log_path, spawned_s)
        yield RunningServer(url, tree, spawned_s, time.perf_counter() - spawned_s)
    finally:
        _end(process, tree, server.stop_timeout_s)


def _wait_ready(
    server: ServerCommand, process: subprocess.Popen[bytes], url: str, log_path: Path, spawned_s: float
) -> None:
    target, reason = parse_target(url, None), "nothing was tried"
    while time.perf_counter() - spawned_s < server.start_timeout_s:
        if process.poll() is not None:
            raise _not_started(server, f"it ended with status {process.returncode}", log_path)
        try:
            fetch(target, server.ready_path, 2.0)
        except SpliceError as error:
            reason = error.message
            time.sleep(_POLL_S)
        else:
            return
    raise _not_started(server, f"not ready within {server.start_timeout_s:g} s ({reason})", log_path)


def _not_started(server: ServerCommand, reason: str, log_path: Path) -> SpliceError:
    words = log_path.read_text(errors="replace").strip()[-_TAIL:]
    return SpliceError(
        ErrorCode.MISSING_PART, f"{server.name} did not start: {reason}; its last words ({log_path}):\n{words}"
    )


def _end(process: subprocess.Popen[bytes], tree: ServerTree, timeout_s: float) -> None:
    """SIGTERM to the process that was started, time to end its own children, SIGKILL to whatever is left."""
    members = tree.processes()
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)
    _, left = psutil.wait_procs(members, timeout=1.0)
    for each in {each.pid: each for each in (*left, *tree.processes())}.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(left, timeout=5.0)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5.0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
