"""CPU time and memory of a server: all its processes, however they were started."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import psutil

MARK = "BENCH_SERVER_TREE"
"""Environment variable that a server started by us passes on to every process it starts, detached ones too."""
_SAMPLE_S = 0.5


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """What was used while a run lasted. Bytes and seconds."""

    cpu_s: float | None = None
    """CPU seconds of the server's processes, user and system; None if the server is not on this machine."""
    client_cpu_s: float
    """CPU seconds of the client itself."""
    foreign_cpu_s: float
    """CPU seconds of everything else on the machine: what spoils a measurement."""
    wall_s: float
    cores: int
    rss_bytes: int | None = None
    """Largest sum of resident set sizes seen; counts pages shared between processes once for each."""
    pss_bytes: int | None = None
    """Sum of proportional set sizes at the end: shared pages counted once."""
    peak_rss_bytes: int | None = None
    """Sum of each process's own high-water mark since it started."""
    processes: int = 0

    @property
    def foreign_share(self) -> float:
        """Of the machine's CPU time, 0 to 1."""
        return self.foreign_cpu_s / (self.wall_s * self.cores) if self.wall_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class ServerTree:
    """How to find the processes: a root and its descendants, and every process that bears the mark's value."""

    root: int | None
    mark: str | None = None

    def processes(self) -> list[psutil.Process]:
        found: dict[int, psutil.Process] = {}
        if self.root is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                root = psutil.Process(self.root)
                found = {each.pid: each for each in (root, *root.children(recursive=True))}
        if self.mark is not None:
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error, OSError):
                    if process.pid not in found and process.environ().get(MARK) == self.mark:
                        found[process.pid] = process
        return list(found.values())


class ResourceMeter:
    """Watches a server from a thread: CPU time is summed per process, so that one that ends meanwhile still counts."""

    def __init__(self, tree: ServerTree | None) -> None:
        self._tree = tree
        self._stop = threading.Event()
        self._first: dict[tuple[int, float], float] = {}
        self._last: dict[tuple[int, float], float] = {}
        self._rss_bytes = 0
        self.result: Resources | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[ResourceMeter]:
        """`result` is there when the block has ended."""
        self._look(baseline=True)
        watcher = threading.Thread(target=self._watch, name="resources", daemon=True)
        began_s, machine_s, own_s = time.monotonic(), _machine_cpu_s(), _own_cpu_s()
        watcher.start()
        try:
            yield self
        finally:
            self._stop.set()
            watcher.join()
            self._look(baseline=False)
            wall_s = time.monotonic() - began_s
            client_s, machine_s = _own_cpu_s() - own_s, _machine_cpu_s() - machine_s
            server_s = sum(last - self._first[key] for key, last in self._last.items())
            memory = self._memory() if self._tree is not None else {}
            self.result = Resources(
                cpu_s=server_s if self._tree is not None else None,
                client_cpu_s=client_s,
                foreign_cpu_s=max(0.0, machine_s - client_s - server_s),
                wall_s=wall_s,
                cores=psutil.cpu_count() or 1,
                rss_bytes=self._rss_bytes or None,
                **memory,
            )

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            self._look(baseline=False)

    def _look(self, *, baseline: bool) -> None:
        if self._tree is None:
            return
        rss = 0
        for process in self._tree.processes():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                key = (process.pid, process.create_time())
                used_s = times.user + times.system
                self._first.setdefault(key, used_s if baseline else 0.0)
                self._last[key] = used_s
                rss += process.memory_info().rss
        self._rss_bytes = max(self._rss_bytes, rss)

    def _memory(self) -> dict[str, int]:
        assert self._tree is not None  # noqa: S101 (asked by the caller)
        pss = peak = count = 0
        for process in self._tree.processes():
            with contextlib.suppress(psutil.Error, OSError, ValueError):
                pss += process.memory_full_info().pss
                peak += _high_water_bytes(process.pid)
                count += 1
        return {"pss_bytes": pss, "peak_rss_bytes": peak, "processes": count}


def _machine_cpu_s() -> float:
    """Busy seconds of all cores since boot, as the kernel counts them, ticks of 10 ms."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def _own_cpu_s() -> float:
    return time.process_time()


def _high_water_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
