"""`splice serve`"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Annotated

import typer

from splice.cli.console import err, say
from splice.cli.flags import with_settings
from splice.cluster.checks import check_model_files, check_serve
from splice.cluster.launcher import Launcher
from splice.cluster.run_dir import ClusterState, RunDirectory
from splice.settings.commands import ServeSettings
from wire.errors import ErrorCode, SpliceError

_WATCH_S = 1.0


@with_settings(ServeSettings, model_argument=True)
def command(
    settings: ServeSettings,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, start nothing.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Return when all is ready; `splice down` ends it.")] = False,
) -> None:
    """Serve a model: etcd, Ray, router, a prefill pool and a decode pool, ended together by ctrl-C.

    [bold]splice serve smollm2[/bold] · the model that `splice pull smollm2` fetched, one worker of each role
    [bold]splice serve ./my-model --prefill 2 --decode 2[/bold] · a Hugging Face directory or GGUF file, two of each
    [bold]splice serve ... --etcd-endpoints H:P --ray-address H:P[/bold] · on machines you run already
    """
    if dry_run:
        for line in (*check_serve(settings), check_model_files(settings)):
            say(line)
        say("all checks passed; nothing was started")
        return
    run_dir = RunDirectory(settings.cluster, Path(settings.run_dir) if settings.run_dir else None)
    if detach:
        _detach(settings, run_dir)
        return
    stop = threading.Event()
    launcher = Launcher(settings, run_dir, say)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # while starting, as ctrl-C
    with launcher.running():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: stop.set())
        _announce(launcher.state)
        told: set[str] = set()
        while not stop.wait(_WATCH_S):
            for name in set(launcher.ended()) - told:
                told.add(name)
                err.print(f"{name} has ended; its log is in {run_dir.path}", style="bold red")
        say("stopping")


def _announce(state: ClusterState) -> None:
    err.print(f"serving at [bold]http://{state.host}:{state.http_port}/v1[/bold], gRPC on port {state.grpc_port}")
    say(f"ask it: splice chat --url http://{state.host}:{state.http_port}    end it: ctrl-C")


def _detach(settings: ServeSettings, run_dir: RunDirectory) -> None:
    """Starts the same command again in a session of its own and waits until it is ready."""
    check_serve(settings)
    run_dir.create()
    log_path = run_dir.path / "serve.log"
    arguments = [word for word in sys.argv[1:] if word != "--detach"]
    with log_path.open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "splice", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    ends = time.monotonic() + settings.start_timeout + 30.0
    while child.poll() is None and time.monotonic() < ends:
        state = run_dir.read()
        if state is not None and state.ready and state.launcher.pid == child.pid:
            err.print(
                f"serving at [bold]http://{state.host}:{state.http_port}/v1[/bold], gRPC on port {state.grpc_port}"
            )
            say(f"end it: splice down --cluster {settings.cluster}")
            return
        time.sleep(0.1)
    child.terminate()
    words = log_path.read_text(errors="replace").strip()[-1000:] if log_path.exists() else ""
    raise SpliceError(ErrorCode.MISSING_PART, f"the cluster did not start: {words or 'no reason given'}")
