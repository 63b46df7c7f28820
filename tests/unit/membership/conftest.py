"""Real etcd servers for the tests of membership."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from membership.client import EtcdClient
from membership.errors import EtcdUnavailableError
from membership.server import EtcdServer
from wire.kv_layout import KVLayout
from wire.worker_record import Role, WorkerRecord

LAYOUT = KVLayout(num_layers=2, num_kv_heads=1, head_dim=8, block_tokens=32, dtype="float32")


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """One server per module; a test that takes it down brings it back."""
    server = EtcdServer(Path(tmp_path_factory.mktemp("etcd")) / "data")
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def client(etcd: EtcdServer) -> AsyncIterator[EtcdClient]:
    client = EtcdClient([etcd.endpoint])
    yield client
    await client.close()


@pytest.fixture
def rng() -> random.Random:
    return random.Random(7)


@pytest.fixture
def make_record() -> Callable[..., WorkerRecord]:
    def make(
        worker_id: str = "w1", role: Role = "prefill", incarnation: int = 11, draining: bool = False
    ) -> WorkerRecord:
        return WorkerRecord(
            worker_id=worker_id,
            incarnation=incarnation,
            role=role,
            endpoint="127.0.0.1:1",
            model="m",
            card_id="c",
            compat_id="k",
            layout=LAYOUT,
            numerics_id="n",
            num_blocks=8,
            max_num_seqs=4,
            max_model_len=256,
            host_id="h",
            pid=1,
            draining=draining,
        )

    return make


@pytest.fixture
def eventually() -> Callable[..., object]:
    async def wait(condition: Callable[[], object], timeout_s: float = 15.0) -> None:
        """Fails when the condition does not come true; the time is a bound for a hang, not a promise.

        A channel that met the server while it came up refuses for another second, its pause before the next attempt.
        """
        async with asyncio.timeout(timeout_s):
            while True:
                with contextlib.suppress(EtcdUnavailableError):
                    result = condition()
                    if asyncio.iscoroutine(result):
                        result = await result
                    if result:
                        return
                await asyncio.sleep(0.02)

    return wait


@pytest.fixture
def pause() -> Callable[[EtcdServer], AbstractContextManager[None]]:
    @contextmanager
    def stopped(server: EtcdServer) -> Iterator[None]:
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(server.pid, signal.SIGCONT)

    return stopped
