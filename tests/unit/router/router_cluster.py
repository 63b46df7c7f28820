"""A router and scripted workers in one event loop, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import httpx
from openai import AsyncOpenAI
from router_toy_model import toy_card
from scripted_worker import ScriptedWorker, Tokens

from router.server import serve
from router.settings import BoundPorts, RouterSettings
from wire.model_card import ModelCard


@dataclass
class Cluster:
    ports: BoundPorts
    workers: dict[str, ScriptedWorker]
    card: ModelCard

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports.http}"

    def __getitem__(self, worker_id: str) -> ScriptedWorker:
        return self.workers[worker_id]

    def client(self, key: str = "none", **options: Any) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=20, **options)

    def http(self, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=20, verify=False, **options)  # noqa: S501 - plain HTTP


@contextlib.asynccontextmanager
async def running_cluster(
    workers: Sequence[str] = ("p0", "d0"),
    *,
    card: ModelCard | None = None,
    numerics: Mapping[str, str] = MappingProxyType({}),
    tokens: Tokens = "offered",
    **settings: Any,
) -> AsyncIterator[Cluster]:
    """`workers`: ids, whose first letter is the role."""
    card = card or toy_card()
    peers: dict[str, ScriptedWorker] = {}
    made = [
        await ScriptedWorker(
            worker_id,
            "prefill" if worker_id[0] == "p" else "decode",
            card,
            peers,
            numerics.get(worker_id, "toy"),
            tokens,
        ).start()
        for worker_id in workers
    ]
    stop, bound = asyncio.Event(), asyncio.get_running_loop().create_future()
    chosen = RouterSettings(
        static_workers=tuple(worker.record for worker in made),
        **{"heartbeat_timeout_s": 1.0, "drain_timeout_s": 1.0, **settings},
    )
    router = asyncio.create_task(serve(chosen, stop, bound.set_result))
    try:
        await asyncio.wait([router, bound], return_when=asyncio.FIRST_COMPLETED)
        if router.done():
            router.result()
        cluster = Cluster(bound.result(), {worker.worker_id: worker for worker in made}, card)
        if made:
            await until_connected(cluster)
        yield cluster
    finally:
        stop.set()
        await asyncio.wait_for(router, 10)
        for worker in made:
            await worker.stop()


async def until_connected(cluster: Cluster, expected: int | None = None) -> None:
    """Until the router sees this many workers; all by default."""
    expected = len(cluster.workers) if expected is None else expected
    async with cluster.http() as http, asyncio.timeout(10):
        while True:
            ready = (await http.get("/ready")).json()
            if sum(ready["workers"].values()) == expected:
                return
            await asyncio.sleep(0.01)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for knows no event
            await asyncio.sleep(0.005)


async def until_true(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await condition():  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
