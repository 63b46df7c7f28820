"""CPU time and memory that a run used, and what everybody else on the machine used meanwhile."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator

import msgspec
import psutil

from splice.bench.process_tree import ServerTree, TreeWatcher

_SAMPLE_S = 0.5
_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


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


class ResourceMeter:
    """Watches a server from a thread: CPU time is summed per process, so that one that ends meanwhile still counts."""

    def __init__(self, tree: ServerTree | None) -> None:
        self._watcher = None if tree is None else TreeWatcher(tree)
        self._stop = threading.Event()
        self._first: dict[int, float] = {}
        self._last: dict[int, float] = {}
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
            memory = self._memory()
            self.result = Resources(
                cpu_s=server_s if self._watcher is not None else None,
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
        if self._watcher is None:
            return
        rss = 0
        for pid in self._watcher.members():
            with contextlib.suppress(OSError):
                used_s = _cpu_s(pid)
                self._first.setdefault(pid, used_s if baseline else 0.0)
                self._last[pid] = used_s
                rss += _rss_bytes(pid)
        self._rss_bytes = max(self._rss_bytes, rss)

    def _memory(self) -> dict[str, int]:
        if self._watcher is None:
            return {}
        pss = peak = count = 0
        for pid in self._watcher.members():
            with contextlib.suppress(psutil.Error, OSError, ValueError):
                pss += psutil.Process(pid).memory_full_info().pss
                peak += _high_water_bytes(pid)
                count += 1
        return {"pss_bytes": pss, "peak_rss_bytes": peak, "processes": count}


def _machine_cpu_s() -> float:
    """Busy seconds of all cores since boot, as the kernel counts them, ticks of 10 ms."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def _own_cpu_s() -> float:
    return time.process_time()


def _cpu_s(pid: int) -> float:
    """User and system time of all its threads. proc(5): fields 14 and 15 of stat, the name in parentheses being 2."""
    with open(f"/proc/{pid}/stat", "rb") as stat:
        fields = stat.read().rpartition(b") ")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def _rss_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm", "rb") as statm:
        return int(statm.read().split()[1]) * _PAGE_BYTES


def _high_water_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
