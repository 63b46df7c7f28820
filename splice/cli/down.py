"""`splice down`"""

from __future__ import annotations

import signal
import time
from pathlib import Path

from splice.cli.console import say
from splice.cli.flags import with_settings
from splice.cluster.launcher import end_cluster
from splice.cluster.run_dir import RunDirectory
from splice.settings.commands import ClusterCommandSettings
from wire.errors import ErrorCode, SpliceError

LAUNCHER_S = 45.0


@with_settings(ClusterCommandSettings)
def command(settings: ClusterCommandSettings) -> None:
    """End the cluster that `splice serve` started on this machine, also when its launcher was killed."""
    run_dir = RunDirectory(settings.cluster, Path(settings.run_dir) if settings.run_dir else None)
    state = run_dir.read()
    if state is None:
        say(f"cluster {settings.cluster!r} does not run here")
        return
    launcher = state.launcher.find()
    if launcher is not None:
        launcher.send_signal(signal.SIGTERM)
        ends = time.monotonic() + LAUNCHER_S
        while state.launcher.find() is not None and time.monotonic() < ends:
            time.sleep(0.1)
    state = run_dir.read() or state
    remaining = end_cluster(run_dir, state)
    if remaining:
        names = ", ".join(f"{each.name} {each.pid}" for each in remaining)
        raise SpliceError(ErrorCode.INTERNAL_ERROR, f"could not end {names}; end them by hand")
    run_dir.remove()
    say(f"cluster {settings.cluster!r} has ended; nothing of it is left")
