"""Registration and watcher through everything that can happen to etcd and to the lease."""

from __future__ import annotations

import asyncio
import random
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
import pytest

from membership.client import EtcdClient
from membership.errors import EtcdUnavailableError
from membership.keys import worker_key, workers_prefix
from membership.registration import Registration, RegistrationState
from membership.server import EtcdServer
from membership.view import MembershipView
from membership.watcher import Watcher
from wire.errors import ErrorCode, SpliceError
from wire.worker_record import WorkerRecord

MakeRecord = Callable[..., WorkerRecord]
Eventually = Callable[..., Awaitable[None]]
Pause = Callable[[EtcdServer], AbstractContextManager[None]]

_names = iter(range(1000))

pytestmark = pytest.mark.slow  # real etcds that are killed, frozen and emptied, and leases that run out


@pytest.fixture
def cluster() -> str:
    return f"c{next(_names)}"


@pytest.fixture
async def registration(
    client: EtcdClient, make_record: MakeRecord, cluster: str, rng: random.Random
) -> AsyncIterator[Registration]:
    registration = Registration(client, make_record(), cluster=cluster, rng=rng, ttl_s=2)
    await registration.start()
    yield registration
    await registration.close()


@pytest.fixture
async def watcher(client: EtcdClient, cluster: str, rng: random.Random) -> AsyncIterator[Watcher]:
    watcher = Watcher(client, cluster, rng=rng, progress_interval_s=0.1, stuck_after_s=0.8, hold_s=3.0)
    await watcher.start()
    yield watcher
    await watcher.close()


async def test_a_worker_appears_drains_and_disappears_for_the_watcher(
    client: EtcdClient, make_record: MakeRecord, cluster: str, rng: random.Random, eventually: Eventually
) -> None:
    told: list[tuple[list[str], list[str], int]] = []

    def on_change(view: MembershipView, joined: tuple[WorkerRecord, ...], left: tuple[WorkerRecord, ...]) -> None:
        told.append(([w.worker_id for w in joined], [w.worker_id for w in left], len(view.workers())))

    watcher = Watcher(client, cluster, rng=rng, on_change=on_change)
    await watcher.start()
    registration = Registration(client, make_record("w"), cluster=cluster, rng=rng)
    await registration.start()
    await eventually(lambda: watcher.view.workers() == (make_record("w"),))
    assert await registration.update_draining()
    await eventually(lambda: watcher.view.workers() == (make_record("w", draining=True),))
    await registration.close()
    assert registration.state is RegistrationState.CLOSED
    await eventually(lambda: not watcher.view.workers())
    assert told == [(["w"], [], 1), ([], [], 1), ([], ["w"], 0)]
    await watcher.close()


async def test_a_lease_is_renewed_for_longer_than_it_lasts(client: EtcdClient, registration: Registration) -> None:
    await asyncio.sleep(3.5)  # TTL 2 s
    assert await client.get(registration.key) is not None
    assert registration.counters.grants == 1
    assert registration.counters.renewals >= 4


async def test_a_lease_revoked_by_an_operator_is_granted_again(
    client: EtcdClient, registration: Registration, watcher: Watcher, eventually: Eventually
) -> None:
    standing = await client.get(registration.key)
    assert standing is not None
    await client.lease_revoke(standing.lease_id)
    await eventually(lambda: not watcher.view.workers())
    await eventually(lambda: watcher.view.workers() == (registration.record,))
    await eventually(lambda: registration.state is RegistrationState.REGISTERED)
    assert registration.counters.leases_lost == 1


async def test_a_record_deleted_or_overwritten_with_rubbish_is_restored(
    client: EtcdClient, registration: Registration, eventually: Eventually
) -> None:
    async def stands() -> bool:
        standing = await client.get(registration.key)
        return standing is not None and standing.value == registration.record.encode() and standing.lease_id != 0

    await client.delete(registration.key)
    await eventually(stands)
    await client.put(registration.key, b"rubbish")
    await eventually(stands)
    assert registration.counters.records_restored == 2
    assert registration.counters.grants == 1


async def test_a_younger_process_of_the_same_name_keeps_the_key_and_the_older_returns_when_it_leaves(
    client: EtcdClient,
    registration: Registration,
    make_record: MakeRecord,
    cluster: str,
    eventually: Eventually,
) -> None:
    younger = Registration(client, make_record(incarnation=99), cluster=cluster, rng=random.Random(8), ttl_s=2)
    await younger.start()
    await eventually(lambda: registration.state is RegistrationState.SUPERSEDED)
    assert not await registration.update_draining(timeout_s=0.2)
    await asyncio.sleep(1.0)
    standing = await client.get(registration.key)
    assert standing is not None
    assert standing.value == younger.record.encode()
    await younger.close()
    await eventually(lambda: registration.state is RegistrationState.REGISTERED)
    standing = await client.get(registration.key)
    assert standing is not None
    assert standing.value == registration.record.encode()


async def test_etcd_killed_and_restarted_on_its_data_loses_nobody(
    etcd: EtcdServer, registration: Registration, watcher: Watcher, eventually: Eventually
) -> None:
    await eventually(lambda: watcher.connected)
    left: list[WorkerRecord] = []
    watcher._on_change = lambda view, joined, gone: left.extend(gone)
    etcd.kill()
    await eventually(lambda: not watcher.connected)
    await asyncio.sleep(2.5)  # longer than the lease
    assert watcher.view.workers() == (registration.record,), "the last view is served while etcd is away"
    assert watcher.view_age_s() > 2
    assert registration.state is RegistrationState.LOST
    etcd.launch()
    await etcd.wait_ready()
    await eventually(lambda: watcher.connected and registration.state is RegistrationState.REGISTERED)
    assert watcher.view.workers() == (registration.record,)
    assert watcher.view_age_s() < 2
    assert left == []


async def test_etcd_restarted_empty_gets_every_record_back_and_the_view_never_empties(
    etcd: EtcdServer, client: EtcdClient, registration: Registration, watcher: Watcher, eventually: Eventually
) -> None:
    for _ in range(20):
        await client.put("/elsewhere", b"x")  # so that the new history is shorter than the old
    sizes: list[int] = []
    watcher._on_change = lambda view, joined, gone: sizes.append(len(view.workers()))
    grants = registration.counters.grants
    before = (await client.list(workers_prefix("x"))).revision
    etcd.kill()
    shutil.rmtree(etcd.data_dir)
    etcd.launch()
    await etcd.wait_ready()

    async def back() -> bool:
        standing = await client.get(registration.key)
        return standing is not None and standing.value == registration.record.encode()

    await eventually(back)
    assert registration.counters.grants > grants
    assert (await client.list(workers_prefix("x"))).revision < before
    await eventually(lambda: watcher.connected and watcher.counters.regressions >= 1 and not watcher.view.held)
    assert watcher.view.workers() == (registration.record,)
    assert 0 not in sizes


async def test_workers_that_do_not_come_back_to_an_emptied_etcd_are_let_go_in_the_end(
    *,
    etcd: EtcdServer,
    client: EtcdClient,
    watcher: Watcher,
    make_record: MakeRecord,
    cluster: str,
    eventually: Eventually,
) -> None:
    await client.put(worker_key(cluster, "decode", "dead"), make_record("dead", "decode").encode())
    await eventually(lambda: watcher.view.workers("decode"))
    etcd.kill()
    shutil.rmtree(etcd.data_dir)
    etcd.launch()
    await etcd.wait_ready()
    await eventually(lambda: watcher.view.held)
    assert watcher.view.workers("decode")
    await eventually(lambda: not watcher.view.workers("decode"))


async def test_another_cluster_behind_the_same_address_is_listed_anew(
    etcd: EtcdServer, registration: Registration, watcher: Watcher, tmp_path: Path, eventually: Eventually
) -> None:
    await eventually(lambda: watcher.connected)
    etcd.stop()
    other = EtcdServer(tmp_path / "other", client_port=etcd.client_port, cluster_token="other")
    await asyncio.to_thread(other.start)
    try:
        await eventually(lambda: watcher.counters.cluster_changes == 1)
        await eventually(lambda: not watcher.view.held and watcher.view.workers() == (registration.record,))
    finally:
        other.stop()
        await asyncio.to_thread(etcd.start)


async def test_a_frozen_etcd_freezes_the_view_and_everything_returns_when_it_thaws(
    etcd: EtcdServer, registration: Registration, watcher: Watcher, eventually: Eventually, pause: Pause
) -> None:
    await eventually(lambda: watcher.connected)
    with pause(etcd):
        await eventually(lambda: not watcher.connected)
        await eventually(lambda: registration.state is RegistrationState.LOST)
        assert watcher.view.workers() == (registration.record,)
    await eventually(lambda: watcher.connected and registration.state is RegistrationState.REGISTERED)
    await eventually(lambda: watcher.view.workers() == (registration.record,))


async def test_a_watcher_behind_a_compaction_lists_again(
    *,
    etcd: EtcdServer,
    client: EtcdClient,
    watcher: Watcher,
    make_record: MakeRecord,
    cluster: str,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await eventually(lambda: watcher.connected)
    real_watch = client.watch
    asked: list[int] = []

    def watch_from_the_past(prefix: str, start_revision: int, *, progress_interval_s: float) -> object:
        asked.append(start_revision)  # once, as if the list had been long ago
        return real_watch(prefix, 1 if len(asked) == 1 else start_revision, progress_interval_s=progress_interval_s)

    monkeypatch.setattr(client, "watch", watch_from_the_past)
    await client.compact(await client.put(worker_key(cluster, "decode", "d"), make_record("d", "decode").encode()))
    etcd.kill()
    etcd.launch()
    await etcd.wait_ready()
    await eventually(lambda: watcher.counters.compactions == 1 and watcher.connected)
    assert watcher.view.workers("decode") == (make_record("d", "decode"),)
    await client.delete(worker_key(cluster, "decode", "d"))
    await eventually(lambda: not watcher.view.workers("decode"))


async def test_a_listener_that_raises_does_not_blind_the_watcher(
    client: EtcdClient, make_record: MakeRecord, cluster: str, rng: random.Random, eventually: Eventually
) -> None:
    def on_change(view: MembershipView, joined: object, left: object) -> None:
        raise RuntimeError("listener")

    watcher = Watcher(client, cluster, rng=rng, on_change=on_change)
    await watcher.start()
    for number, name in enumerate("ab", start=1):
        await client.put(worker_key(cluster, "decode", name), make_record(name, "decode").encode())
        await eventually(lambda seen=number: len(watcher.view.workers()) == seen)  # one change each, not one for both
    assert watcher.counters.callback_errors == 2
    await watcher.close()


async def test_a_killed_process_leaves_the_view_when_its_lease_ends(
    etcd: EtcdServer, watcher: Watcher, make_record: MakeRecord, cluster: str, eventually: Eventually
) -> None:
    program = f"""
import asyncio, random
from membership.client import EtcdClient
from membership.registration import Registration
from wire.worker_record import decode_record

async def main():
    record = decode_record({make_record("victim").encode()!r})
    client = EtcdClient({etcd.endpoint!r})
    await Registration(client, record, cluster={cluster!r}, rng=random.Random(1), ttl_s=2).start()
    await asyncio.sleep(60)

asyncio.run(main())
"""
    victim = await asyncio.create_subprocess_exec(sys.executable, "-c", program, cwd=Path(__file__).parents[3])
    try:
        await eventually(lambda: watcher.view.get("prefill", "victim"))
        victim.kill()
        await eventually(lambda: not watcher.view.workers())
    finally:
        if victim.returncode is None:
            victim.kill()
        await victim.wait()


async def test_an_etcd_that_is_not_there_at_start_is_a_clear_error_within_the_deadline(
    make_record: MakeRecord, rng: random.Random
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{closed.getsockname()[1]}"
        client = EtcdClient([dead])
        for starting in (
            Registration(client, make_record(), cluster="c", rng=rng).start(timeout_s=1.0),
            Watcher(client, "c", rng=rng).start(timeout_s=1.0),
        ):
            with pytest.raises(EtcdUnavailableError, match=dead) as raised:
                await asyncio.wait_for(starting, 10)
            assert "--etcd-endpoints" in raised.value.message
        await client.close()


async def test_an_update_while_etcd_is_away_is_written_when_it_returns(
    etcd: EtcdServer, client: EtcdClient, registration: Registration, eventually: Eventually
) -> None:
    etcd.kill()
    assert not await registration.update_draining(timeout_s=0.3)
    etcd.launch()
    await etcd.wait_ready()
    drained = msgspec.structs.replace(registration.record, draining=True).encode()

    async def written() -> bool:
        standing = await client.get(registration.key)
        return standing is not None and standing.value == drained

    await eventually(written)


async def test_closing_without_etcd_ends_quietly(
    etcd: EtcdServer, client: EtcdClient, make_record: MakeRecord, cluster: str, rng: random.Random
) -> None:
    registration = Registration(client, make_record("q"), cluster=cluster, rng=rng, ttl_s=2)
    await registration.start()
    etcd.kill()
    await registration.close()
    assert registration.state is RegistrationState.CLOSED
    etcd.launch()
    await etcd.wait_ready()


def test_a_lease_shorter_than_etcd_can_keep_is_refused(make_record: MakeRecord, rng: random.Random) -> None:
    with pytest.raises(SpliceError) as raised:
        Registration(EtcdClient("127.0.0.1:1"), make_record(), cluster="c", rng=rng, ttl_s=1)
    assert raised.value.code is ErrorCode.BAD_SETTING
    assert raised.value.param == "ttl_s"
