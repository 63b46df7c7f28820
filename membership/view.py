"""The view of all workers: lists and events of the store in, who joined and who left out. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from membership.keys import ROLES, workers_prefix
from wire.worker_record import Role, WorkerRecord, decode_record


@dataclass(frozen=True, slots=True)
class Entry:
    """One key as a list returned it."""

    key: str
    value: bytes
    mod_revision: int


@dataclass(frozen=True, slots=True)
class KeyEvent:
    """One change as a watch delivered it; `value` is None for a deletion."""

    key: str
    value: bytes | None
    revision: int


@dataclass(frozen=True, slots=True)
class InvalidEntry:
    """A key that is in the store but not in the view, and why."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class ViewChange:
    """What one list or one batch of events did. A new incarnation under an old key is one `left` and one `joined`."""

    joined: tuple[WorkerRecord, ...] = ()
    left: tuple[WorkerRecord, ...] = ()
    updated: tuple[WorkerRecord, ...] = ()
    """Same incarnation, other content (draining, for example)."""
    invalid: tuple[InvalidEntry, ...] = ()
    """Keys that became invalid, or stay invalid for another reason."""
    suspect: bool = False
    """More than half of the workers vanished in one list. They are kept as held: see `MembershipView.release_held`."""

    def __bool__(self) -> bool:
        return bool(self.joined or self.left or self.updated)


@dataclass(slots=True)
class ViewCounters:
    duplicate_events: int = 0
    regressions: int = 0
    """Lists older than what was already known: the store lost data or was restored."""
    invalid_records: int = 0
    suspect_lists: int = 0


class MembershipView:
    """Workers of one cluster, as the store tells it.

    After any sequence of lists and events the view equals the store's valid records at `revision`, plus the held ones.
    A list is the truth whatever its revision; an event at or below `revision` is a repetition. Of one revision all
    events must come in one `apply` (etcd's watch is atomic).
    """

    def __init__(self, cluster: str) -> None:
        self.prefix = workers_prefix(cluster)
        self.revision = 0
        self.counters = ViewCounters()
        self._records: dict[str, WorkerRecord] = {}
        self._held: set[str] = set()
        self._invalid: dict[str, str] = {}

    # Questions.

    def workers(self, role: Role | None = None) -> tuple[WorkerRecord, ...]:
        """All workers, or those of one role, sorted by worker_id (then role)."""
        chosen = (record for record in self._records.values() if role is None or record.role == role)
        return tuple(sorted(chosen, key=lambda record: (record.worker_id, record.role)))

    def get(self, role: Role, worker_id: str) -> WorkerRecord | None:
        return self._records.get(f"{self.prefix}{role}/{worker_id}")

    @property
    def held(self) -> tuple[WorkerRecord, ...]:
        """Workers missing from a suspect list that have neither come back nor been released."""
        return tuple(self._records[key] for key in sorted(self._held))

    @property
    def invalid(self) -> tuple[InvalidEntry, ...]:
        """What stands in the store now but is kept out."""
        return tuple(InvalidEntry(key, self._invalid[key]) for key in sorted(self._invalid))

    # Facts.

    def snapshot(self, entries: Iterable[Entry], revision: int) -> ViewChange:
        """Take a full list made at `revision`.

        If more than half of the workers that were not draining are missing (an emptied or restored store), they are
        held instead of dropped and the change says `suspect`; the caller decides how long to believe in them.
        """
        if revision < self.revision:
            self.counters.regressions += 1
        before = dict(self._records)
        listed = {entry.key: entry.value for entry in entries}
        missing = before.keys() - listed.keys()
        steady = {key for key, record in before.items() if not record.draining}
        suspect = 2 * len(steady & missing) > len(steady)

        self.counters.suspect_lists += suspect
        self._held = (self._held & missing) | (steady & missing if suspect else set())
        for key in missing - self._held:
            del self._records[key]
        self._invalid = {key: reason for key, reason in self._invalid.items() if key in listed}
        invalid = [self._put(key, value) for key, value in listed.items()]
        self.revision = revision
        return self._since(before, invalid, suspect)

    def apply(self, events: Iterable[KeyEvent]) -> ViewChange:
        """Take one batch of a watch: every event above `revision`, in revision order; the others were seen before."""
        before = dict(self._records)
        invalid: list[InvalidEntry | None] = []
        floor = self.revision
        for event in sorted(events, key=lambda event: event.revision):
            if event.revision <= floor:
                self.counters.duplicate_events += 1
                continue
            self.revision = event.revision
            if event.value is not None:
                invalid.append(self._put(event.key, event.value))
                continue
            self._held.discard(event.key)
            self._invalid.pop(event.key, None)
            self._records.pop(event.key, None)
        return self._since(before, invalid)

    def release_held(self) -> ViewChange:
        """Stop believing in the held workers."""
        before = dict(self._records)
        for key in self._held:
            del self._records[key]
        self._held.clear()
        return self._since(before, ())

    def check(self) -> None:
        """Prove the invariants; raises AssertionError naming the first one broken."""
        for key, record in self._records.items():
            if key != f"{self.prefix}{record.role}/{record.worker_id}":
                raise AssertionError(f"{record.role} {record.worker_id!r} stands under the foreign key {key!r}")
        if stray := self._held - self._records.keys():
            raise AssertionError(f"held but not in the view: {sorted(stray)}")
        if both := self._invalid.keys() & self._records.keys() - self._held:
            raise AssertionError(f"valid and invalid at once: {sorted(both)}")
        if self.revision < 0:
            raise AssertionError(f"revision {self.revision} is negative")
        if sum(len(self.workers(role)) for role in ROLES) != len(self._records):
            raise AssertionError("a worker has a role that nobody asks for")

    # How.

    def _put(self, key: str, value: bytes) -> InvalidEntry | None:
        """Take one key. One bad writer must not blind the reader to the others: what is no record is kept out."""
        self._held.discard(key)
        self._records.pop(key, None)
        try:
            record = decode_record(value)
        except (msgspec.DecodeError, ValueError) as error:
            return self._keep_out(key, f"not a worker record: {error}")
        if key != f"{self.prefix}{record.role}/{record.worker_id}":
            return self._keep_out(key, f"the record says {record.role}/{record.worker_id}, the key says otherwise")
        self._records[key] = record
        self._invalid.pop(key, None)
        return None

    def _keep_out(self, key: str, reason: str) -> InvalidEntry | None:
        if self._invalid.get(key) == reason:
            return None
        self._invalid[key] = reason
        self.counters.invalid_records += 1
        return InvalidEntry(key, reason)

    def _since(
        self, before: dict[str, WorkerRecord], invalid: Iterable[InvalidEntry | None], suspect: bool = False
    ) -> ViewChange:
        """The net change: who came and went within one batch was never seen by anybody and is not told of."""
        joined, left, updated = [], [], []
        for key in sorted(before.keys() | self._records.keys()):
            old, new = before.get(key), self._records.get(key)
            if old is not None and (new is None or new.incarnation != old.incarnation):
                left.append(old)
            if new is not None and (old is None or new.incarnation != old.incarnation):
                joined.append(new)
            elif new is not None and new != old:
                updated.append(new)
        kept_out = tuple(entry for entry in invalid if entry is not None)
        return ViewChange(tuple(joined), tuple(left), tuple(updated), kept_out, suspect)
