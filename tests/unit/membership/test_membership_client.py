"""The etcd client against a real server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager

import pytest

from membership.channel import EtcdTLS, parse_endpoints
from membership.client import EtcdClient, prefix_end
from membership.errors import EtcdUnavailableError, LeaseNotFoundError, WatchEndedError
from membership.server import EtcdServer
from membership.watch import WatchStream
from wire.errors import ErrorCode, SpliceError
from wire.etcd import etcd_pb2


async def test_what_is_put_is_listed_under_its_prefix_and_no_other(client: EtcdClient) -> None:
    await client.put("/a/1", b"one")
    revision = await client.put("/a/2", b"two")
    await client.put("/ab", b"other")
    listing = await client.list("/a/")
    assert [(kv.key, kv.value) for kv in listing.entries] == [("/a/1", b"one"), ("/a/2", b"two")]
    assert listing.revision > revision
    assert await client.delete("/a", prefix=True) == 3
    assert await client.get("/a/1") is None


async def test_a_revoked_lease_takes_its_keys_along_and_is_reported_gone(client: EtcdClient) -> None:
    lease = await client.lease_grant(30)
    await client.put("/lease", b"x", lease_id=lease.lease_id)
    assert await client.lease_keepalive(lease.lease_id) == lease.ttl_s
    assert await client.lease_revoke(lease.lease_id)
    assert await client.get("/lease") is None
    assert not await client.lease_revoke(lease.lease_id)
    with pytest.raises(LeaseNotFoundError):
        await client.lease_keepalive(lease.lease_id)
    with pytest.raises(LeaseNotFoundError):
        await client.put("/lease", b"x", lease_id=lease.lease_id)


async def test_a_conditional_put_does_not_overwrite_a_later_writer(client: EtcdClient) -> None:
    assert await client.put_if_unchanged("/cond", b"first", 0)
    assert not await client.put_if_unchanged("/cond", b"second", 0)
    standing = await client.get("/cond")
    assert standing is not None
    assert standing.value == b"first"
    assert await client.put_if_unchanged("/cond", b"third", standing.mod_revision)


async def test_a_watch_delivers_every_change_from_its_revision_and_signs_of_life(client: EtcdClient) -> None:
    first = await client.put("/w/a", b"1")
    await client.put("/w/a", b"2")
    async with client.watch("/w/", first, progress_interval_s=0.05) as stream:
        seen = []
        while len(seen) < 2:
            seen += (await stream.next(5)).events
        await client.delete("/w/a")
        while len(seen) < 3:
            seen += (await stream.next(5)).events
        assert [event.value for event in seen] == [b"1", b"2", None]
        assert [event.revision - first for event in seen] == [0, 1, 2]
        assert (await stream.next(5)).events == ()


async def test_cancelling_whoever_waits_for_a_response_that_just_came_cancels_it(client: EtcdClient) -> None:
    response: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    async def responses() -> AsyncIterator[object]:
        yield await response

    async with client.watch("/w/", 1) as stream:
        stream._responses = responses()
        waiting = asyncio.create_task(stream.next(5))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        response.set_result(etcd_pb2.WatchResponse())
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_a_watch_from_a_compacted_revision_ends_with_an_error_instead_of_hanging(client: EtcdClient) -> None:
    old = await client.put("/c/a", b"1")
    new = await client.put("/c/a", b"2")
    await client.compact(new)
    async with client.watch("/c/", old) as stream:
        with pytest.raises(WatchEndedError) as ended:
            await asyncio.wait_for(_drain(stream, 5), 5)
    assert ended.value.compact_revision == new


async def test_a_dead_endpoint_is_passed_over_for_the_next(etcd: EtcdServer) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{closed.getsockname()[1]}"
        client = EtcdClient([dead, etcd.endpoint])
        await client.put("/next", b"x")
        async with client.watch("/next", 1) as stream:
            assert (await stream.next(5)).cluster_id
        await client.close()


async def test_an_endpoint_that_accepts_and_never_answers_is_passed_over_within_the_deadline(etcd: EtcdServer) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        client = EtcdClient([f"127.0.0.1:{silent.getsockname()[1]}", etcd.endpoint])
        assert (await client.status(timeout_s=2.0)).version.startswith("3.")
        await client.close()


async def test_an_unreachable_etcd_is_an_error_naming_endpoints_and_remedy() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{closed.getsockname()[1]}"
        client = EtcdClient(f"http://{dead}")
        with pytest.raises(EtcdUnavailableError, match=dead) as raised:
            await client.list("/", timeout_s=1.0)
        assert raised.value.code is ErrorCode.MISSING_PART
        assert "--etcd-endpoints" in str(raised.value)
        await client.close()


@pytest.mark.parametrize(
    "endpoints", ["", "localhost", "ftp://a:1", "a:0", "a:70000", "http://a:1,https://b:2", "a b:1"]
)
def test_a_malformed_endpoint_is_refused_by_name(endpoints: str) -> None:
    with pytest.raises(SpliceError) as raised:
        parse_endpoints(endpoints, False)
    assert raised.value.param == "etcd_endpoints"


def test_https_means_tls_and_certificates_mean_https() -> None:
    assert parse_endpoints("https://a:1, https://b:2/", False) == (("a:1", "b:2"), True)
    assert parse_endpoints("[::1]:2379", True) == (("[::1]:2379",), True)
    with pytest.raises(SpliceError):
        parse_endpoints("http://a:1", True)
    with pytest.raises(SpliceError):
        EtcdTLS(client_cert=b"only")


def test_the_end_of_a_prefix_follows_all_its_keys() -> None:
    assert prefix_end("/a/") == b"/a0"
    assert prefix_end("") == b"\0"


async def test_a_server_that_stops_answering_is_noticed_by_the_watch(
    etcd: EtcdServer, client: EtcdClient, pause: Callable[[EtcdServer], AbstractContextManager[None]]
) -> None:
    now = await client.put("/stuck", b"")  # older revisions may be compacted: the server ends a watch from there
    async with client.watch("/stuck", now, progress_interval_s=0.1) as stream:
        await stream.next(5)
        with pause(etcd), pytest.raises(EtcdUnavailableError, match="silent"):
            await _drain(stream, 0.6)


async def _drain(stream: WatchStream, timeout_s: float) -> None:
    while True:
        await stream.next(timeout_s)
