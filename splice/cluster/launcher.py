"""Starts, watches and ends one cluster on this machine."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec

import splice
from kvtransfer.host import pid_space
from membership.server import EtcdServer
from splice.cluster.checks import check_model_files, check_serve
from splice.cluster.placement_job import NODE_HOST, Job, PlacedReport, Pool
from splice.cluster.placement_process import PlacementProcess
from splice.cluster.processes import ProcessId, bearing, end, identify
from splice.cluster.ray_head import START_S, RayHead, ray_environment
from splice.cluster.router_process import start_router, wait_listening
from splice.cluster.run_dir import ClusterState, RunDirectory
from splice.settings.commands import ServeSettings
from splice.settings.environment import child_environment
from splice.settings.parts import pool_settings
from wire.errors import ErrorCode, SpliceError
from wire.worker_record import Role, WorkerRecord, decode_record

ROUTER_STOP_S = 12.0
WORKERS_STOP_S = 15.0
_READY_POLL_S = 0.02
PYTHON_PATH = str(Path(splice.__file__).resolve().parents[1])
"""Children import the very code that this process runs."""

Say = Callable[[str], None]


class Launcher:
    """One cluster. Use as `with Launcher(...).running() as state`: whatever was started is ended on the way out."""

    def __init__(self, settings: ServeSettings, run_dir: RunDirectory, say: Say) -> None:
        self._settings = settings
        self._run_dir = run_dir
        self._say = say
        self._started_s = time.monotonic()
        self._etcd: EtcdServer | None = None
        self._ray: RayHead | None = None
        self._router: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._begun = False
        """Whether anything has been started that could have something to say."""
        own = identify("launcher", os.getpid())
        assert own is not None  # noqa: S101 (this process runs)
        self.state = ClusterState(cluster=settings.cluster, launcher=own, host=settings.host)
        self.workers: list[WorkerRecord] = []

    @contextmanager
    def running(self) -> Iterator[ClusterState]:
        """Raises SpliceError when something does not start; ends everything in any case."""
        check_serve(self._settings)
        self._run_dir.create()
        self._run_dir.write(self.state)
        failed = True
        try:
            self._start()
            yield self.state
            failed = False
        except KeyboardInterrupt:
            failed = False
            raise
        finally:
            self.stop(keep_logs=failed and self._begun)

    def ended(self) -> list[str]:
        """Names of children that should run and do not."""
        found = []
        if self._router is not None and self._router.poll() is not None:
            found.append("router")
        if self._etcd is not None and not self._etcd.running:
            found.append("etcd")
        return found

    def stop(self, *, keep_logs: bool) -> None:
        """Front door first, so that running answers can end; then the workers, Ray and etcd."""
        if self._router is not None:
            self._router.terminate()
            try:
                self._router.wait(ROUTER_STOP_S)
            except subprocess.TimeoutExpired:
                self._router.kill()
                self._router.wait()
        if not self.state.own_etcd or self._ray is None:
            self._stop_workers()  # otherwise nobody is left who could miss them
        stuck: list[int] = []
        if self._ray is not None:
            self._ray.save_logs(self._run_dir.logs)
            stuck += self._ray.stop()
        if self._etcd is not None:
            self._etcd.stop()
        stuck += [process.pid for process in end(bearing([str(self._run_dir.path)]), grace_s=2.0)]
        if stuck:
            self._say(f"these processes could not be ended: {', '.join(map(str, stuck))}")
        if keep_logs:
            self._say(f"logs are in {self._run_dir.logs}")
            (self._run_dir.path / "state.json").unlink(missing_ok=True)
        else:
            self._run_dir.remove()

    def _start(self) -> None:
        """Everything at once. Ray takes longest: its process starts first and loads while the model is looked at, and
        while etcd and router come up."""
        self._prepare_ray()
        with ThreadPoolExecutor(1) as beside, self._placement_process() as placement:
            check_model_files(self._settings)
            self._begun = True
            ray = beside.submit(self._start_ray, placement)
            endpoints = self._start_etcd()
            ready_file, log = self._run_dir.path / "router.json", self._run_dir.logs / "router.log"
            self._router = start_router(self._settings, endpoints, ready_file, log, PYTHON_PATH)
            self._remember("router", self._router.pid)
            ray.result()
            job = self._job("place", self._settings.start_timeout, self._pools())
            placed = beside.submit(self._take_placed, placement.run(job))
            router = wait_listening(self._router, ready_file, log, self._settings.start_timeout)
            self._update(http_port=router.http, grpc_port=router.grpc)
            self._progress("router", f"http://{router.host}:{router.http}, gRPC on port {router.grpc}")
            placed.result()
        self._wait_ready()
        self._update(ready=True)

    def _start_etcd(self) -> tuple[str, ...]:
        if self._settings.etcd_endpoints:
            self._update(etcd_endpoints=self._settings.etcd_endpoints)
            return self._settings.etcd_endpoints
        self._etcd = EtcdServer(self._run_dir.path / "etcd")
        self._etcd.start()
        self._update(etcd_endpoints=(self._etcd.endpoint,), own_etcd=True)
        if self._etcd.pid is not None:
            self._remember("etcd", self._etcd.pid)
        self._progress("etcd", self._etcd.endpoint)
        return (self._etcd.endpoint,)

    def _prepare_ray(self) -> None:
        if self._settings.ray_address is not None:
            self._update(ray_address=self._settings.ray_address)
            return
        resources = {f"splice_{role}": count for role, count in self._counts().items() if count}
        self._ray = RayHead(self._run_dir.token_path, resources)
        self._update(own_ray_dir=str(self._ray.folder))

    def _start_ray(self, placement: PlacementProcess) -> None:
        if self._ray is None:
            return
        placement.start_head(self._ray.prepare(), START_S)
        self._update(ray_address=self._ray.address)
        self._progress("ray", f"{self._ray.address}, token in {self._run_dir.token_path}")

    def _take_placed(self, reports: Iterator[PlacedReport]) -> None:
        for report in reports:
            if report.error is not None:
                code, message, param = report.error
                raise SpliceError(ErrorCode(code), f"{report.name}: {message}", param=param)
            record = decode_record(report.record)
            self.workers.append(record)
            if record.host_id == pid_space():  # elsewhere its pid is somebody else's here, whom `splice down` would end
                self._remember(record.worker_id, record.pid)
            self._progress(record.role, f"{record.worker_id} at {record.endpoint}, {record.num_blocks} KV blocks")

    def _pools(self) -> tuple[Pool, ...]:
        return tuple(self._pool(role, count) for role, count in self._counts().items() if count)

    def _pool(self, role: Role, count: int) -> Pool:
        settings = self._settings
        if self._ray is not None:
            host = "127.0.0.1" if settings.worker_host == "auto" else settings.worker_host
            resource: str | None = f"splice_{role}"
        else:
            host = NODE_HOST if settings.worker_host == "auto" else settings.worker_host
            resource = settings.prefill_resource if role == "prefill" else settings.decode_resource
        worker = pool_settings(settings, role, host, self.state.etcd_endpoints)
        gpus = 0.0 if settings.device == "cpu" else settings.num_gpus
        return Pool(settings=worker, count=count, resource=resource, cpus=worker.num_threads, gpus=gpus)

    def _counts(self) -> dict[Role, int]:
        return {"prefill": self._settings.prefill, "decode": self._settings.decode}

    def _placement_process(self) -> PlacementProcess:
        own = ray_environment(self._run_dir.token_path) if self._ray is not None else {}
        environment = child_environment(own | {"PYTHONPATH": PYTHON_PATH}, without=("RAY_",) if own else ())
        return PlacementProcess(environment, self._run_dir.logs / "placement.log")

    def _job(self, action: Literal["place", "stop"], timeout_s: float, pools: tuple[Pool, ...] = ()) -> Job:
        return Job(
            action=action,
            ray_address=self.state.ray_address or "",
            namespace=f"splice-{self._settings.cluster}",
            timeout_s=timeout_s,
            pools=pools,
        )

    def _stop_workers(self) -> None:
        if self.state.ray_address is None or not self.workers:
            return
        try:
            with self._placement_process() as placement:
                for _ in placement.run(self._job("stop", WORKERS_STOP_S)):
                    pass
        except SpliceError as error:
            self._say(f"workers were not told to stop: {error.message}")

    def _wait_ready(self) -> None:
        """Until the router itself says that it sees all workers: an answer could be given from now on."""
        ends = time.monotonic() + self._settings.start_timeout
        answer: dict[str, Any] = {}
        while time.monotonic() < ends:
            answer = _ask_router(_dialled(self._settings.host), self.state.http_port)
            workers = answer.get("workers", {})
            seen = {role: workers.get(role, 0) for role in self._counts()}
            if seen == self._counts():
                return
            time.sleep(_READY_POLL_S)
        raise SpliceError(
            ErrorCode.MISSING_PART, f"the router does not see all workers: {answer}", param="start_timeout"
        )

    def _progress(self, part: str, text: str) -> None:
        self._say(f"{time.monotonic() - self._started_s:5.1f} s  {part:<8} {text}")

    def _remember(self, name: str, pid: int) -> None:
        found = identify(name, pid)
        if found is not None:
            self._update(processes=(*self.state.processes, found))

    def _update(self, **changes: object) -> None:
        with self._lock:
            self.state = msgspec.structs.replace(self.state, **changes)
            self._run_dir.write(self.state)


def end_cluster(run_dir: RunDirectory, state: ClusterState) -> list[ProcessId]:
    """Ends what a state file names, and nothing else; for when the launcher is gone. Returns what remains."""
    marks = [str(run_dir.path), *([state.own_ray_dir] if state.own_ray_dir else [])]
    found = {process.pid: process for process in bearing(marks)}
    found |= {process.pid: process for each in state.living() if (process := each.find()) is not None}
    end(found.values(), grace_s=5.0)
    if state.own_ray_dir:
        shutil.rmtree(state.own_ray_dir, ignore_errors=True)
    return state.living()


def _ask_router(host: str, port: int) -> dict[str, Any]:
    """What `GET /ready` says; nothing while it does not answer."""
    connection = http.client.HTTPConnection(host, port, timeout=2.0)
    try:
        connection.request("GET", "/ready")
        answer = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return {}
    finally:
        connection.close()
    return answer if isinstance(answer, dict) else {}


def _dialled(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (compared, not bound)
