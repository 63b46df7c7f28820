"""A thin etcd v3 client: what membership needs and no more. Every call has a deadline; nothing is retried behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from membership.channel import EtcdTLS, Member, Members
from membership.errors import LeaseNotFoundError
from membership.watch import WatchStream
from wire.etcd import etcd_pb2, kv_pb2

DEFAULT_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class KeyValue:
    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease_id: int


@dataclass(frozen=True, slots=True)
class Listing:
    """A linearizable read: everything under a prefix at one revision."""

    entries: tuple[KeyValue, ...]
    revision: int
    cluster_id: int


@dataclass(frozen=True, slots=True)
class LeaseGrant:
    lease_id: int
    ttl_s: float


@dataclass(frozen=True, slots=True)
class ServerStatus:
    version: str
    cluster_id: int
    member_id: int
    leader_id: int
    """0 while the member knows no leader."""
    revision: int
    db_bytes: int


class EtcdClient:
    """Speaks to one etcd cluster through one or more endpoints.

    Raises EtcdUnavailableError when no endpoint answers within the deadline, EtcdError when etcd refuses. Must be used
    on one event loop; connections open at the first call.
    """

    def __init__(self, endpoints: Sequence[str] | str, *, tls: EtcdTLS | None = None) -> None:
        self._members = Members(endpoints, tls)

    @property
    def endpoints(self) -> tuple[str, ...]:
        return self._members.addresses

    async def get(self, key: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> KeyValue | None:
        """One key, linearizable."""
        response = await self._range(etcd_pb2.RangeRequest(key=key.encode()), f"get {key}", timeout_s)
        return _key_value(response.kvs[0]) if response.kvs else None

    async def list(self, prefix: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Listing:
        """All keys starting with `prefix`, linearizable."""
        request = etcd_pb2.RangeRequest(key=prefix.encode(), range_end=prefix_end(prefix))
        response = await self._range(request, f"list {prefix}", timeout_s)
        entries = tuple(_key_value(kv) for kv in response.kvs)
        return Listing(entries, response.header.revision, response.header.cluster_id)

    async def put(self, key: str, value: bytes, *, lease_id: int = 0, timeout_s: float = DEFAULT_TIMEOUT_S) -> int:
        """Write a key, attached to a lease if one is given → its revision. LeaseNotFoundError if the lease is gone."""
        request = etcd_pb2.PutRequest(key=key.encode(), value=value, lease=lease_id)

        async def ask(member: Member, limit_s: float) -> int:
            with _lease_errors(lease_id):
                return int((await member.kv.Put(request, timeout=limit_s)).header.revision)

        return await self._members.call(f"put {key}", timeout_s, ask)

    async def put_if_unchanged(
        self, key: str, value: bytes, mod_revision: int, *, lease_id: int = 0, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> bool:
        """Write a key only if it still stands at `mod_revision` (0: does not exist) → whether it was written."""
        unchanged = etcd_pb2.Compare(
            result=etcd_pb2.Compare.EQUAL,
            target=etcd_pb2.Compare.MOD,
            key=key.encode(),
            mod_revision=mod_revision,
        )
        write = etcd_pb2.PutRequest(key=key.encode(), value=value, lease=lease_id)
        request = etcd_pb2.TxnRequest(compare=[unchanged], success=[etcd_pb2.RequestOp(request_put=write)])

        async def ask(member: Member, limit_s: float) -> bool:
            with _lease_errors(lease_id):
                return bool((await member.kv.Txn(request, timeout=limit_s)).succeeded)

        return await self._members.call(f"put {key}", timeout_s, ask)

    async def delete(self, key: str, *, prefix: bool = False, timeout_s: float = DEFAULT_TIMEOUT_S) -> int:
        """Delete one key, or all that start with it → how many there were."""
        request = etcd_pb2.DeleteRangeRequest(key=key.encode(), range_end=prefix_end(key) if prefix else b"")

        async def ask(member: Member, limit_s: float) -> int:
            return int((await member.kv.DeleteRange(request, timeout=limit_s)).deleted)

        return await self._members.call(f"delete {key}", timeout_s, ask)

    async def compact(self, revision: int, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Forget the history before `revision`."""

        async def ask(member: Member, limit_s: float) -> None:
            await member.kv.Compact(etcd_pb2.CompactionRequest(revision=revision), timeout=limit_s)

        await self._members.call(f"compact {revision}", timeout_s, ask)

    async def lease_grant(self, ttl_s: int, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> LeaseGrant:
        """A new lease; etcd may grant a longer time than asked for."""

        async def ask(member: Member, limit_s: float) -> LeaseGrant:
            response = await member.lease.LeaseGrant(etcd_pb2.LeaseGrantRequest(TTL=ttl_s), timeout=limit_s)
            return LeaseGrant(response.ID, float(response.TTL))

        return await self._members.call("grant lease", timeout_s, ask)

    async def lease_revoke(self, lease_id: int, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> bool:
        """End a lease and delete its keys → False if there was none."""

        async def ask(member: Member, limit_s: float) -> bool:
            try:
                await member.lease.LeaseRevoke(etcd_pb2.LeaseRevokeRequest(ID=lease_id), timeout=limit_s)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    return False
                raise
            return True

        return await self._members.call(f"revoke lease {lease_id:x}", timeout_s, ask)

    async def lease_keepalive(self, lease_id: int, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> float:
        """Renew a lease once → its time to live, seconds. LeaseNotFoundError if it is gone.

        One short stream per renewal: a deadline on the call is then a deadline on the answer, which a long stream
        does not give.
        """

        async def ask(member: Member, limit_s: float) -> float:
            requests = [etcd_pb2.LeaseKeepAliveRequest(ID=lease_id)]
            call = member.lease.LeaseKeepAlive(iter(requests), timeout=limit_s)
            try:
                async for response in call:
                    return float(response.TTL)
            finally:
                call.cancel()
            return 0.0

        ttl_s = await self._members.call(f"keep lease {lease_id:x}", timeout_s, ask)
        if ttl_s <= 0:
            raise LeaseNotFoundError(lease_id)
        return ttl_s

    async def status(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> ServerStatus:
        """Of the member in use."""

        async def ask(member: Member, limit_s: float) -> ServerStatus:
            answer = await member.maintenance.Status(etcd_pb2.StatusRequest(), timeout=limit_s)
            header = answer.header
            return ServerStatus(
                answer.version, header.cluster_id, header.member_id, answer.leader, header.revision, answer.dbSize
            )

        return await self._members.call("status", timeout_s, ask)

    def watch(self, prefix: str, start_revision: int, *, progress_interval_s: float = 2.0) -> WatchStream:
        """Changes under `prefix` from `start_revision` on; the stream must be closed (`async with`)."""
        return WatchStream(self._members, prefix, prefix_end(prefix), start_revision, progress_interval_s)

    async def close(self) -> None:
        await self._members.close()

    async def _range(self, request: etcd_pb2.RangeRequest, what: str, timeout_s: float) -> Any:
        async def ask(member: Member, limit_s: float) -> Any:
            return await member.kv.Range(request, timeout=limit_s)

        return await self._members.call(what, timeout_s, ask)


def prefix_end(prefix: str) -> bytes:
    """The first key after all that start with `prefix` (etcd's clientv3.GetPrefixRangeEnd)."""
    raw = bytearray(prefix.encode())
    while raw:
        if raw[-1] < 0xFF:
            raw[-1] += 1
            return bytes(raw)
        raw.pop()
    return b"\0"  # etcd: no upper end


def _key_value(kv: kv_pb2.KeyValue) -> KeyValue:
    # A key that is no UTF-8 is not ours; it must not hide the others.
    return KeyValue(kv.key.decode(errors="backslashreplace"), kv.value, kv.create_revision, kv.mod_revision, kv.lease)


@contextmanager
def _lease_errors(lease_id: int) -> Iterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND and lease_id:
            raise LeaseNotFoundError(lease_id) from error
        raise
