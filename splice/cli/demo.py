"""`splice demo`"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path

from splice.cli.answer import show_answer
from splice.cli.console import err, say
from splice.client import Client
from splice.cluster.launcher import Launcher
from splice.cluster.processes import bearing
from splice.cluster.run_dir import ClusterState, RunDirectory
from splice.models import pull
from splice.settings.commands import ServeSettings
from wire.errors import ErrorCode, SpliceError

QUESTION = "What is the capital of France? Answer in one sentence."
_SHM = Path("/dev/shm")  # noqa: S108 (only looked at)


def command() -> None:
    """Start a whole cluster, stream one answer, show its receipt, end everything, and check that nothing is left."""
    began_s = time.monotonic()
    pull("smollm2", say)
    run_dir = RunDirectory("demo", Path(tempfile.mkdtemp(prefix="splice-demo-")))
    segments = set(os.listdir(_SHM))
    settings = ServeSettings(model="smollm2", cluster="demo", port=0, grpc_port=0, run_dir=str(run_dir.path))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    launcher = Launcher(settings, run_dir, say)
    with launcher.running():
        url = f"http://{launcher.state.host}:{launcher.state.http_port}"
        err.print(f"\n[bold]{QUESTION}[/bold]")
        with Client(url) as client:
            show_answer(
                client.chat("smollm2", [{"role": "user", "content": QUESTION}], max_tokens=64, temperature=0.0),
                receipt=True,
            )
    _check_nothing_left(launcher.state, run_dir, segments)
    say(f"{time.monotonic() - began_s:5.1f} s  ended; no process, port, shared memory or directory is left")


def _check_nothing_left(state: ClusterState, run_dir: RunDirectory, segments: set[str]) -> None:
    marks = [str(run_dir.path), *([state.own_ray_dir] if state.own_ray_dir else [])]
    left = [f"process {process.pid}" for process in bearing(marks)]
    left += [f"{each.name} {each.pid}" for each in state.processes if each.find() is not None]
    left += [mark for mark in marks if Path(mark).exists()]
    left += [str(_SHM / name) for name in set(os.listdir(_SHM)) - segments]
    if left:
        raise SpliceError(ErrorCode.INTERNAL_ERROR, f"the demo left something behind: {', '.join(left)}")
