"""A Ray head of our own on this machine.

Started without `--block`: with it, Ray's supervisor ends every process of the node within two seconds of the death of
gcs_server. Without it and with a reconnect timeout that never passes, raylet and actors go on (measured with Ray 2.60:
an actor still served 170 s after `kill -9` of gcs_server, when the observation ended). Losing the head then costs
restarts and scaling, not service.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from splice.cluster.processes import bearing, end
from splice.settings.environment import child_environment
from wire.errors import ErrorCode, SpliceError

ADVERTISED_HOST = "127.0.0.2"
"""Ray replaces 127.0.0.1 by the address of the network card, which changes when a laptop changes networks."""
OBJECT_STORE_BYTES = 80_000_000
"""Near the least that Ray takes: no KV and no request passes through it."""
NEVER_S = 10 * 365 * 86_400
START_S = 60.0
CPUS = 1024
"""Workers are placed by the pools' own resources; Ray's count of cores must not stand in their way."""


def ray_environment(token_path: Path) -> dict[str, str]:
    """What each process of the Ray cluster, and each that talks to it, must find in its environment."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_gcs_rpc_server_reconnect_timeout_s": str(NEVER_S),
    }


class RayHead:
    """`start` blocks until the head accepts drivers; `stop` ends every process of it and removes its directory."""

    def __init__(self, token_path: Path, resources: dict[str, int], python_path: str) -> None:
        self._token_path = token_path
        self._resources = resources
        self._python_path = python_path
        # Unix socket paths end at 107 bytes and Ray adds about 70 of its own.
        self.folder = Path(tempfile.mkdtemp(prefix="splice-ray-", dir=_short_temp_dir()))
        self.address = ""

    def start(self) -> None:
        """Raises SpliceError when Ray does not come up."""
        descriptor = os.open(self._token_path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as token:
            token.write(secrets.token_hex(32))
        port, client_port = _free_ports(2)
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head"]
        command += ["--port", str(port), "--node-ip-address", ADVERTISED_HOST, "--temp-dir", str(self.folder)]
        command += ["--object-store-memory", str(OBJECT_STORE_BYTES), "--num-cpus", str(CPUS), "--num-gpus", "0"]
        command += ["--resources", json.dumps(self._resources), "--ray-client-server-port", str(client_port)]
        command += ["--include-dashboard", "false", "--dashboard-host", "127.0.0.1", "--disable-usage-stats"]
        environment = child_environment(
            ray_environment(self._token_path) | {"PYTHONPATH": self._python_path}, without=("RAY_",)
        )
        log_path = self.folder / "start.log"
        with log_path.open("wb") as log:
            try:
                done = subprocess.run(
                    command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                    start_new_session=True, timeout=START_S, check=False,
                )  # fmt: skip
                failed = done.returncode != 0
            except subprocess.TimeoutExpired:
                failed = True
        if failed:
            tail = log_path.read_text(errors="replace")[-1500:].strip()
            raise SpliceError(
                ErrorCode.MISSING_PART,
                f"Ray did not start within {START_S:.0f} s; `splice doctor` checks what it needs. It said:\n{tail}",
                param="ray",
            )
        self.address = f"{ADVERTISED_HOST}:{port}"

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


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
