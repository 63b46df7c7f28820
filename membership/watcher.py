"""Keeps a MembershipView in step with etcd, and keeps serving the last one when etcd is gone."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from membership.backoff import Backoff
from membership.client import EtcdClient
from membership.errors import EtcdError, EtcdUnavailableError, WatchEndedError
from membership.view import Entry, MembershipView, ViewChange
from membership.watch import WatchBatch
from wire.worker_record import WorkerRecord

log = structlog.get_logger(__name__)

OnChange = Callable[[MembershipView, tuple[WorkerRecord, ...], tuple[WorkerRecord, ...]], None]


@dataclass(slots=True)
class WatcherCounters:
    lists: int = 0
    batches: int = 0
    events: int = 0
    failures: int = 0
    """Lists and watches that ended in an error; each is followed by another list."""
    compactions: int = 0
    regressions: int = 0
    """The store's revision went backwards: it was emptied, restored, or a member lags."""
    cluster_changes: int = 0
    callback_errors: int = 0


class Watcher:
    """Lists, then watches from that revision; lists again after any break, since only a list shows what was missed.

    `on_change(view, joined, left)` runs on the event loop whenever a worker joined, left or changed (draining: both
    tuples are empty). Only `start` raises for an absent etcd; afterwards the view freezes while etcd is away and
    `view_age_s` grows. Workers that vanish en masse (an emptied store) are held for `hold_s` of contact with etcd,
    enough for live ones to register again.
    """

    def __init__(
        self,
        client: EtcdClient,
        cluster: str,
        *,
        rng: random.Random,
        on_change: OnChange | None = None,
        hold_s: float = 10.0,
        progress_interval_s: float = 2.0,
        stuck_after_s: float = 6.0,
    ) -> None:
        self.view = MembershipView(cluster)
        self.counters = WatcherCounters()
        self._client = client
        self._on_change = on_change
        self._hold_s = hold_s
        self._progress_interval_s = progress_interval_s
        self._stuck_after_s = stuck_after_s
        self._backoff = Backoff(rng)
        self._cluster_id = 0
        self._confirmed_s: float | None = None
        self._connected = False
        self._release: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """Whether the watch stands, as far as the last `stuck_after_s` tell."""
        return self._connected

    def view_age_s(self, now_s: float | None = None) -> float:
        """Seconds (monotonic, of the event loop) since etcd last confirmed the view; infinite before the first list."""
        if self._confirmed_s is None:
            return float("inf")
        now_s = asyncio.get_running_loop().time() if now_s is None else now_s
        return max(0.0, now_s - self._confirmed_s)

    async def start(self, timeout_s: float = 10.0) -> None:
        """Returns with a first full view. EtcdUnavailableError if etcd stays away for `timeout_s`; refusals at once."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        while True:
            try:
                await self._list(max(0.1, min(3.0, deadline_s - loop.time())))
                break
            except EtcdUnavailableError:
                self.counters.failures += 1
                delay_s = self._backoff.next_s()
                if loop.time() + delay_s >= deadline_s:
                    raise
                await asyncio.sleep(delay_s)
        self._task = asyncio.create_task(self._keep(), name=f"watch {self.view.prefix}")

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))
        self._stop_release()
        self._connected = False

    # The one task.

    async def _keep(self) -> None:
        listed = True  # by start
        while True:
            try:
                if not listed:
                    await self._list(3.0)
                await self._follow()
            except WatchEndedError as error:
                self.counters.compactions += error.compact_revision > 0
                self._note_break(error)
            except EtcdError as error:
                self._note_break(error)
            except Exception:  # whatever it is, the router goes on with the view it has
                log.exception("membership_watch_failed", prefix=self.view.prefix)
                self._note_break(None)
            listed = False
            await asyncio.sleep(self._backoff.next_s())

    async def _list(self, timeout_s: float) -> None:
        listing = await self._client.list(self.view.prefix, timeout_s=timeout_s)
        self.counters.lists += 1
        if self._cluster_id not in (0, listing.cluster_id):
            self.counters.cluster_changes += 1
            log.warning("membership_other_cluster", was=f"{self._cluster_id:x}", now=f"{listing.cluster_id:x}")
        if listing.revision < self.view.revision:
            self.counters.regressions += 1
            log.warning("membership_revision_regressed", was=self.view.revision, now=listing.revision)
        self._cluster_id = listing.cluster_id
        change = self.view.snapshot(
            (Entry(entry.key, entry.value, entry.mod_revision) for entry in listing.entries), listing.revision
        )
        self._confirm()
        if change.suspect:
            log.error("membership_mass_loss", held=[worker.worker_id for worker in self.view.held], hold_s=self._hold_s)
        self._tell(change)

    async def _follow(self) -> None:
        """Watches until something is wrong: an error, or a return when only another list can tell."""
        floor = self.view.revision
        stream = self._client.watch(self.view.prefix, floor + 1, progress_interval_s=self._progress_interval_s)
        async with stream:
            while True:
                batch = await stream.next(self._stuck_after_s)
                if not self._continues(batch, floor):
                    self._note_break(None)
                    return
                if not self._connected:
                    self._connected = True
                    self._arm_release()
                self._backoff.reset()
                self._confirm()
                if batch.events:
                    self.counters.batches += 1
                    self.counters.events += len(batch.events)
                    self._tell(self.view.apply(batch.events))

    def _continues(self, batch: WatchBatch, floor: int) -> bool:
        """Whether this is still the history the list belonged to."""
        if batch.cluster_id != self._cluster_id:
            log.warning("membership_watch_other_cluster", cluster_id=f"{batch.cluster_id:x}")
            return False
        if batch.revision < floor:
            log.warning("membership_watch_behind", revision=batch.revision, listed_at=floor)
            return False
        return True

    # What follows.

    def _confirm(self) -> None:
        self._confirmed_s = asyncio.get_running_loop().time()

    def _note_break(self, error: EtcdError | None) -> None:
        self.counters.failures += 1
        if self._connected:
            log.warning("membership_view_frozen", workers=len(self.view.workers()), error=str(error or "see above"))
        self._connected = False
        self._stop_release()  # held workers are given their time anew: they cannot register while etcd is away

    def _tell(self, change: ViewChange) -> None:
        for entry in change.invalid:
            log.error("membership_record_invalid", key=entry.key, reason=entry.reason)
        if not change or self._on_change is None:
            return
        try:
            self._on_change(self.view, change.joined, change.left)
        except Exception:  # the listener's fault must not blind it for good
            self.counters.callback_errors += 1
            log.exception("membership_listener_failed", joined=len(change.joined), left=len(change.left))

    def _arm_release(self) -> None:
        if self.view.held and self._release is None:
            self._release = asyncio.get_running_loop().call_later(self._hold_s, self._release_held)

    def _stop_release(self) -> None:
        if self._release is not None:
            self._release.cancel()
            self._release = None

    def _release_held(self) -> None:
        self._release = None
        self._tell(self.view.release_held())
