"""The router finds its workers in a real etcd and keeps serving when etcd is gone."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import httpx
import msgspec
import pytest
from router_cluster import until_true
from router_toy_model import toy_card
from scripted_worker import ScriptedWorker

from membership.client import EtcdClient
from membership.registration import Registration
from membership.server import EtcdServer
from router.server import serve
from router.settings import RouterSettings
from wire.errors import ErrorCode, SpliceError


async def test_workers_come_and_go_by_their_registration_and_losing_etcd_changes_nothing(tmp_path: Path) -> None:
    etcd = EtcdServer(tmp_path / "etcd")
    await asyncio.to_thread(etcd.start)
    client = EtcdClient(etcd.endpoint)
    peers: dict[str, ScriptedWorker] = {}
    decode = await ScriptedWorker("d0", "decode", toy_card(), peers).start()
    prefill = await ScriptedWorker("p0", "prefill", toy_card(), peers).start()
    stop, bound = asyncio.Event(), asyncio.get_running_loop().create_future()
    settings = RouterSettings(etcd_endpoints=(etcd.endpoint,), cluster="test", drain_timeout_s=1.0)
    router = asyncio.create_task(serve(settings, stop, bound.set_result))
    registrations = [
        Registration(client, worker.record, cluster="test", rng=random.Random(0)) for worker in (decode, prefill)
    ]
    try:
        url = f"http://127.0.0.1:{(await asyncio.wait_for(bound, 20)).http}"
        async with httpx.AsyncClient(base_url=url, timeout=10) as http:

            async def workers() -> tuple[int, int]:
                counted = (await http.get("/ready")).json()["workers"]
                return counted["prefill"], counted["decode"]

            async def serves() -> bool:
                body = {"model": "toy", "prompt": "fox", "max_tokens": 3}
                return (await http.post("/v1/completions", json=body)).status_code == 200

            assert await workers() == (0, 0)
            assert (await http.get("/ready")).status_code == 503
            for registration in registrations:
                await registration.start()
            await until_true(lambda: _equals(workers(), (1, 1)))
            assert await serves()
            await registrations[1].update(msgspec.structs.replace(prefill.record, draining=True))
            await until_true(lambda: _equals(workers(), (0, 1)))
            await asyncio.to_thread(etcd.kill)
            assert await serves()
            await asyncio.sleep(0.3)
            assert await serves()
            metrics = (await http.get("/metrics")).text
            age = next(line for line in metrics.splitlines() if line.startswith("splice:membership_view_age_seconds "))
            assert float(age.split()[1]) > 0.0
    finally:
        stop.set()
        await asyncio.wait_for(router, 20)
        for registration in registrations:
            await registration.close()
        await client.close()
        await asyncio.to_thread(etcd.stop)
        for worker in (decode, prefill):
            await worker.stop()


async def _equals(asked: object, wanted: tuple[int, int]) -> bool:
    return (await asked) == wanted  # type: ignore[misc]


async def test_a_taken_port_is_named() -> None:
    stop, bound = asyncio.Event(), asyncio.get_running_loop().create_future()
    first = asyncio.create_task(serve(RouterSettings(), stop, bound.set_result))
    ports = await asyncio.wait_for(bound, 10)
    try:
        for settings, setting in (
            (RouterSettings(http_port=ports.http), "http_port"),
            (RouterSettings(grpc_port=ports.grpc), "grpc_port"),
        ):
            with pytest.raises(SpliceError) as caught:
                await serve(settings, asyncio.Event())
            assert (caught.value.code, caught.value.param) == (ErrorCode.BAD_SETTING, setting)
    finally:
        stop.set()
        await asyncio.wait_for(first, 10)
