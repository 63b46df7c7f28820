"""The router as a child process of the launcher."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import msgspec

from splice.settings.commands import RouterCommandSettings, ServeSettings
from splice.settings.environment import child_environment
from splice.settings.setting import settings_of
from wire.errors import ErrorCode, SpliceError

_POLL_S = 0.05


class ListeningRouter(msgspec.Struct, frozen=True):
    """Written by `splice router --ready-file` once both ports accept connections."""

    host: str
    http: int
    grpc: int


def start_router(
    settings: ServeSettings, etcd_endpoints: tuple[str, ...], ready_file: Path, log: Path, python_path: str
) -> subprocess.Popen[bytes]:
    """Every setting goes over as a flag, except the key, which others could read there."""
    command = [sys.executable, "-m", "splice", "router", "--ready-file", str(ready_file)]
    for name in settings_of(RouterCommandSettings):
        value = etcd_endpoints if name == "etcd_endpoints" else getattr(settings, name)
        if value is not None and name != "api_key":
            written = ",".join(value) if isinstance(value, tuple) else str(value)
            command += ["--" + name.replace("_", "-"), written]
    secrets = {"SPLICE_API_KEY": settings.api_key} if settings.api_key else {}
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            env=child_environment({"PYTHONPATH": python_path} | secrets),
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )


def wait_listening(process: subprocess.Popen[bytes], ready_file: Path, log: Path, timeout_s: float) -> ListeningRouter:
    """Raises SpliceError with the router's own words when it ends instead."""
    ends = time.monotonic() + timeout_s
    while not ready_file.exists():
        if process.poll() is not None or time.monotonic() > ends:
            words = log.read_text(errors="replace").strip()[-800:]
            raise SpliceError(
                ErrorCode.MISSING_PART, f"the router did not start: {words or 'no reason given'}", param="router"
            )
        time.sleep(_POLL_S)
    return msgspec.json.decode(ready_file.read_bytes(), type=ListeningRouter)
