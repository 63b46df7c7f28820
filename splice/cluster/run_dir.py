"""The run directory: private, one per cluster, gone after a clean end."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

import msgspec

from splice.cluster.processes import ProcessId
from wire.errors import ErrorCode, SpliceError


class ClusterState(msgspec.Struct, frozen=True, kw_only=True):
    """What runs on this machine for one cluster."""

    cluster: str
    launcher: ProcessId
    ready: bool = False
    host: str = "127.0.0.1"
    http_port: int = 0
    grpc_port: int = 0
    etcd_endpoints: tuple[str, ...] = ()
    own_etcd: bool = False
    ray_address: str | None = None
    own_ray_dir: str | None = None
    """Temp directory of the Ray head we started; it marks all of its processes."""
    processes: tuple[ProcessId, ...] = ()
    """Everything the launcher started itself."""

    def living(self) -> list[ProcessId]:
        return [process for process in (self.launcher, *self.processes) if process.find() is not None]


class RunDirectory:
    """`path` is 0700 and ours; the launcher alone writes."""

    def __init__(self, cluster: str, path: Path | None = None) -> None:
        self.cluster = cluster
        self.path = path or Path(tempfile.gettempdir()) / f"splice-{os.getuid()}" / cluster

    @property
    def token_path(self) -> Path:
        return self.path / "ray.token"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def create(self) -> None:
        """Raises SpliceError when the place belongs to somebody else or to a running cluster."""
        for folder in (
            (self.path.parent, self.path) if self.path.parent.name == f"splice-{os.getuid()}" else (self.path,)
        ):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                raise SpliceError(
                    ErrorCode.BAD_SETTING,
                    f"{folder} is not a directory of yours; choose another --run-dir",
                    param="run_dir",
                )
        os.chmod(self.path, 0o700)
        state = self.read()
        if state is not None and (living := state.living()):
            names = ", ".join(f"{process.name} {process.pid}" for process in living)
            raise SpliceError(
                ErrorCode.BAD_SETTING,
                f"cluster {self.cluster!r} is already running here ({names}); "
                f"`splice down --cluster {self.cluster}` ends it, --cluster NAME starts another beside it "
                "(with its own --port and --grpc-port)",
                param="cluster",
            )
        shutil.rmtree(self.logs, ignore_errors=True)
        self.logs.mkdir(mode=0o700)

    def read(self) -> ClusterState | None:
        """None when nothing was started from here. Raises SpliceError for a damaged file."""
        try:
            return msgspec.json.decode((self.path / "state.json").read_bytes(), type=ClusterState)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise SpliceError(
                ErrorCode.BAD_SETTING,
                f"{self.path / 'state.json'} cannot be read ({error}); end its processes, then remove {self.path}",
                param="run_dir",
            ) from None

    def write(self, state: ClusterState) -> None:
        partial = self.path / "state.json.partial"
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=2))
        os.replace(partial, self.path / "state.json")

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self.path.parent.name == f"splice-{os.getuid()}":
            try:
                self.path.parent.rmdir()
            except OSError:
                return  # another cluster of this user lives there
