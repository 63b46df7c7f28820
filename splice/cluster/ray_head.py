"""A Ray head of our own on this machine, as the launcher sees it: what it is told, where it lives, how it ends.

Started without `--block` and what goes with it: with it, Ray's supervisor ends every process of the node within two
seconds of the death of gcs_server. Without it and with a reconnect timeout that never passes, raylet and actors go on
(measured with Ray 2.60: an actor still served 170 s after `kill -9` of gcs_server, when the observation ended). Losing
the head then costs restarts and scaling, not service.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
from pathlib import Path

from splice.cluster.placed_worker import PARTS
from splice.cluster.placement_job import StartHead
from splice.cluster.processes import bearing, end

ADVERTISED_HOST = "127.0.0.2"
"""Ray replaces 127.0.0.1 by the address of the network card, which changes when a laptop changes networks."""
NEVER_S = 10 * 365 * 86_400
START_S = 60.0


def ray_environment(token_path: Path) -> dict[str, str]:
    """What each process of the Ray cluster, and each that talks to it, must find in its environment."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_gcs_rpc_server_reconnect_timeout_s": str(NEVER_S),
        # Ray's default of 15 lets everything else on the machine go before the processes that compute the answers.
        "RAY_worker_niceness": "0",
        # The processes of the workers-to-be start with the raylet and load their code before they are told what to be.
        "RAY_enable_worker_prestart": "1",
        "RAY_preload_python_modules": ",".join(PARTS),
    }


class RayHead:
    """`prepare` makes what a head needs before it starts; `stop` ends every process of it and removes its directory."""

    def __init__(self, token_path: Path, resources: dict[str, int]) -> None:
        self._token_path = token_path
        self._resources = resources
        # Unix socket paths end at 107 bytes and Ray adds about 70 of its own.
        self.folder = Path(tempfile.mkdtemp(prefix="splice-ray-", dir=_short_temp_dir()))
        self._port = _free_port()

    @property
    def address(self) -> str:
        return f"{ADVERTISED_HOST}:{self._port}"

    def prepare(self) -> StartHead:
        """Writes a fresh token and returns what the placement process is to be told."""
        descriptor = os.open(self._token_path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as token:
            token.write(secrets.token_hex(32))
        return StartHead(folder=str(self.folder), host=ADVERTISED_HOST, port=self._port, resources=self._resources)

    def save_logs(self, folder: Path) -> None:
        """Copies what workers wrote; Ray keeps it in the directory that `stop` removes."""
        for session in self.folder.glob("session_2*/logs"):
            for log in session.glob("worker-*"):
                shutil.copy(log, folder / log.name)

    def stop(self) -> list[int]:
        """Returns the pids that could not be ended; normally none."""
        return stop_ray(self.folder, self._token_path)


def stop_ray(folder: Path, token_path: Path) -> list[int]:
    """Ends the Ray processes that bear these paths, and those alone: `ray stop` would end every Ray on the machine."""
    remaining = end(bearing([str(folder), str(token_path)]), grace_s=4.0)
    shutil.rmtree(folder, ignore_errors=True)
    return [process.pid for process in remaining]


def _short_temp_dir() -> str:
    default = tempfile.gettempdir()
    return default if len(default) <= 12 else "/tmp"  # noqa: S108 (mkdtemp makes a private directory there)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
