"""A worker's entry in the membership store, kept alive as long as the worker lives."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from enum import Enum

import msgspec
import structlog

from membership.backoff import Backoff
from membership.client import EtcdClient
from membership.errors import EtcdError, EtcdUnavailableError, LeaseNotFoundError
from membership.keys import worker_key
from membership.lease import MIN_TTL_S, HeldLease
from wire.errors import ErrorCode, SpliceError
from wire.worker_record import WorkerRecord, decode_record

log = structlog.get_logger(__name__)

_HERD_S = 0.3  # a lost lease is often everybody's: spread the first answers over this long


class RegistrationState(str, Enum):
    STARTING = "starting"
    REGISTERED = "registered"
    LOST = "lost"
    """The lease may be gone and etcd does not answer or has forgotten it; being worked on."""
    SUPERSEDED = "superseded"
    """A younger process registered under the same worker_id. It keeps the key; we return when it leaves."""
    CLOSED = "closed"


@dataclass(slots=True)
class RegistrationCounters:
    grants: int = 0
    puts: int = 0
    renewals: int = 0
    failed_attempts: int = 0
    leases_lost: int = 0
    records_restored: int = 0
    """The key was gone or foreign although the lease lived."""
    times_superseded: int = 0


class Registration:
    """Keeps one WorkerRecord under a lease until `close`.

    Only `start` raises for an absent etcd. Afterwards no state of etcd ends the registration or the process: it renews,
    and when the lease or the key is lost it takes a new lease and writes the record again, with jittered delays.
    Everything runs on the event loop that called `start`; one task does all writing.
    """

    def __init__(
        self,
        client: EtcdClient,
        record: WorkerRecord,
        *,
        cluster: str,
        rng: random.Random,
        ttl_s: int = 5,
    ) -> None:
        if ttl_s < MIN_TTL_S:
            raise SpliceError(
                ErrorCode.BAD_SETTING, f"{ttl_s} s is too short, etcd needs at least {MIN_TTL_S} s", param="ttl_s"
            )
        self.key = worker_key(cluster, record.role, record.worker_id)
        self.counters = RegistrationCounters()
        self._client = client
        self._record = record
        self._ttl_s = ttl_s
        self._rng = rng
        self._state = RegistrationState.STARTING
        self._lease: HeldLease | None = None
        self._written: WorkerRecord | None = None
        self._wake = asyncio.Event()
        self._confirmed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    @property
    def record(self) -> WorkerRecord:
        return self._record

    @property
    def state(self) -> RegistrationState:
        if self._state is RegistrationState.REGISTERED and self.lease_remaining_s() <= 0:
            return RegistrationState.LOST
        return self._state

    def lease_remaining_s(self) -> float:
        """Seconds for which the record is certain to stand; 0 when nothing is certain."""
        return 0.0 if self._lease is None else self._lease.remaining_s(_now_s())

    async def start(self, timeout_s: float = 10.0) -> None:
        """Returns when the record stands. EtcdUnavailableError if that fails for `timeout_s`; other refusals at once.

        An older incarnation's record under the same worker_id is replaced: its process is dead or about to be.
        """
        deadline_s = _now_s() + timeout_s
        backoff = Backoff(self._rng)
        while True:
            try:
                left_s = max(0.1, deadline_s - _now_s())
                await self._grant(min(left_s, self._ttl_s))
                await self._put(min(left_s, self._ttl_s))
                break
            except (EtcdUnavailableError, LeaseNotFoundError):
                self.counters.failed_attempts += 1
                delay_s = backoff.next_s()
                if _now_s() + delay_s >= deadline_s:
                    raise
                await asyncio.sleep(delay_s)
        self._task = asyncio.create_task(self._keep(), name=f"registration {self.key}")

    async def update(self, record: WorkerRecord, timeout_s: float = 3.0) -> bool:
        """Replace the record → whether etcd confirmed it in time; if not, it is written as soon as etcd takes it.

        worker_id, role and incarnation must stay.
        """
        if (record.worker_id, record.role, record.incarnation) != (
            self._record.worker_id,
            self._record.role,
            self._record.incarnation,
        ):
            raise SpliceError(
                ErrorCode.INTERNAL_ERROR, "an update may not change worker_id, role or incarnation; register anew"
            )
        self._record = record
        self._wake.set()
        try:
            async with asyncio.timeout(timeout_s), self._confirmed:
                await self._confirmed.wait_for(lambda: self._written == self._record or self._task is None)
        except TimeoutError:
            return False
        return self._written == record

    async def update_draining(self, timeout_s: float = 3.0) -> bool:
        """Tell routers to send nothing new."""
        return await self.update(msgspec.structs.replace(self._record, draining=True), timeout_s)

    async def close(self, timeout_s: float = 2.0) -> None:
        """Stop and revoke the lease, which deletes the record; without etcd the record ends with its lease."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))
        lease, self._lease = self._lease, None
        self._state = RegistrationState.CLOSED
        async with self._confirmed:
            self._confirmed.notify_all()
        if lease is None:
            return
        try:
            await self._client.lease_revoke(lease.lease_id, timeout_s=timeout_s)
        except EtcdError as error:
            log.warning("registration_not_revoked", key=self.key, ends_in_s=lease.ttl_s, error=str(error))

    # The one task.

    async def _keep(self) -> None:
        backoff = Backoff(self._rng)
        while True:
            delay_s = 0.0
            try:
                await self._advance()
                backoff.reset()
                delay_s = self._ttl_s / 4 if self._lease is None else self._lease.renew_in_s(_now_s())
            except LeaseNotFoundError as error:
                self._lose(error)
                delay_s = self._rng.uniform(0, _HERD_S)
            except EtcdError as error:
                self._note_failure(error)
                delay_s = backoff.next_s()
            except Exception:  # whatever it is, a worker that serves must not vanish from the view because of it
                self.counters.failed_attempts += 1
                log.exception("registration_failed", key=self.key)
                delay_s = backoff.next_s()
            await self._sleep(delay_s)

    async def _advance(self) -> None:
        """One step towards: a live lease, and our record under it."""
        if self._lease is None:
            await self._regrant()
            return
        if self._written != self._record and self._state is RegistrationState.REGISTERED:
            await self._put(self._lease.attempt_timeout_s(_now_s()))
            return
        sent_s = _now_s()
        ttl_s = await self._client.lease_keepalive(
            self._lease.lease_id, timeout_s=self._lease.attempt_timeout_s(sent_s)
        )
        self._lease = self._lease.renewed(sent_s, ttl_s)
        self.counters.renewals += 1
        await self._restore()

    async def _regrant(self) -> None:
        """A new lease and the record under it, unless a younger process holds the key now."""
        standing = await self._client.get(self.key, timeout_s=self._ttl_s)
        if standing is not None and self._is_foreign(standing.value):
            self._supersede(standing.value)
            return
        await self._grant(self._ttl_s)
        await self._restore()

    async def _restore(self) -> None:
        """Look at the key itself: a live lease says nothing about a key that was deleted or overwritten."""
        assert self._lease is not None  # noqa: S101 (the callers just renewed or granted it)
        standing = await self._client.get(self.key, timeout_s=self._lease.attempt_timeout_s(_now_s()))
        if standing is not None and self._is_foreign(standing.value):
            self._supersede(standing.value)
            return
        if (
            standing is not None
            and standing.lease_id == self._lease.lease_id
            and standing.value == self._record.encode()
        ):
            self._stands()
            await self._confirm()
            return
        record, revision = self._record, standing.mod_revision if standing is not None else 0
        written = await self._client.put_if_unchanged(
            self.key,
            record.encode(),
            revision,
            lease_id=self._lease.lease_id,
            timeout_s=self._lease.attempt_timeout_s(_now_s()),
        )
        if not written:
            return  # somebody wrote in between: the next renewal looks again
        self.counters.puts += 1
        self.counters.records_restored += 1
        log.warning("registration_restored", key=self.key, lease=f"{self._lease.lease_id:x}")
        self._stands()
        await self._confirm(record)

    async def _grant(self, timeout_s: float) -> None:
        sent_s = _now_s()
        grant = await self._client.lease_grant(self._ttl_s, timeout_s=timeout_s)
        self._lease = HeldLease(grant.lease_id, grant.ttl_s, sent_s)
        self.counters.grants += 1

    async def _put(self, timeout_s: float) -> None:
        assert self._lease is not None  # noqa: S101 (the callers hold one)
        record = self._record
        await self._client.put(self.key, record.encode(), lease_id=self._lease.lease_id, timeout_s=timeout_s)
        self.counters.puts += 1
        self._stands()
        await self._confirm(record)

    # What the state becomes.

    def _stands(self) -> None:
        if self._state is not RegistrationState.REGISTERED:
            log.info("registered", key=self.key, incarnation=self._record.incarnation)
        self._state = RegistrationState.REGISTERED

    def _lose(self, error: EtcdError) -> None:
        self.counters.leases_lost += 1
        self._lease = None
        if self._state is RegistrationState.REGISTERED:
            self._state = RegistrationState.LOST
        log.warning("registration_lease_lost", key=self.key, error=str(error))

    def _note_failure(self, error: EtcdError) -> None:
        self.counters.failed_attempts += 1
        if self._state is RegistrationState.REGISTERED and self.lease_remaining_s() <= 0:
            self._state = RegistrationState.LOST
            log.warning("registration_uncertain", key=self.key, error=str(error))

    def _supersede(self, value: bytes) -> None:
        if self._state is not RegistrationState.SUPERSEDED:
            self.counters.times_superseded += 1
            log.error(
                "registration_superseded",
                key=self.key,
                incarnation=self._record.incarnation,
                by=decode_record(value).incarnation,
                remedy="two processes share one worker_id: give each its own, or stop the older one",
            )
        self._state = RegistrationState.SUPERSEDED

    def _is_foreign(self, value: bytes) -> bool:
        """Another incarnation's record. Bytes that are no record are nobody's and get overwritten."""
        try:
            return decode_record(value).incarnation != self._record.incarnation
        except (msgspec.DecodeError, ValueError):
            return False

    async def _confirm(self, record: WorkerRecord | None = None) -> None:
        async with self._confirmed:
            self._written = record or self._record
            self._confirmed.notify_all()

    async def _sleep(self, delay_s: float) -> None:
        """Until `delay_s` passed or `update` has something to write."""
        if self._wake.is_set() and self._written == self._record:
            self._wake.clear()
        try:
            async with asyncio.timeout(max(delay_s, 0.01)):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()


def _now_s() -> float:
    return asyncio.get_running_loop().time()
