"""As `handoff`, pushed: the engine stores each key and value in the other process's pool too, while it computes.

The other process compares what lies in its blocks with the digests that are announced and pulls nothing. Prompts that
stay take turns with those that are pushed, so that what pushing takes from prefill can be seen.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.gpu.handoff import (
    BLOCKS,
    CHUNK_TOKENS,
    COPIES,
    INCARNATION,
    PROMPT_TOKENS,
    ROUNDS,
    TO_START_S,
    Consumer,
    Handoff,
    device_pool,
    memcpy_seconds,
    other_process,
    seconds_of,
)
from engine.scheduling.request import RequestKey
from engine.steps.peer_blocks import PeerBlocks
from kvtransfer.device_pool import DevicePoolMemory
from kvtransfer.transport import PeerPool
from kvtransfer.transports.cuda_ipc import CudaIpcLink, CudaIpcSource

_OURS = 7


class OnePrompt:
    """`engine.steps.pushes.PushPort`: every prompt goes to blocks 0, 1, … of one peer, while it is `open`."""

    def __init__(self, address: int) -> None:
        self._blocks = PeerBlocks(address, 0, tuple(range(BLOCKS)))
        self.open = False

    def begin(self, key: RequestKey) -> PeerBlocks | None:
        """See `PushPort.begin`."""
        return self._blocks if self.open else None

    def launched(self, keys: Sequence[RequestKey], event: int) -> None:
        """The blocks are not reused before the prompt's last announcement, which lies behind the event."""


def measure() -> list[dict[str, Any]]:
    """A `Handoff` of prompts that are pushed, as plain data; its name says what prefill takes where they are not."""
    with other_process(compute) as pipe, device_pool(_OURS) as pool:
        address, num_blocks = pipe.recv()
        door = CudaIpcSource(pool, None, "")
        pipe.send(door.offer()[0])
        link = CudaIpcLink(
            address, PeerPool(pool.layout.layout_id, INCARNATION, num_blocks, pool.layout.block_bytes), pool
        )
        found: dict[str, list[tuple[float, float]]] = {"push": [], "stay": []}
        for _ in range(ROUNDS):
            for way, times in found.items():
                prefill, exposed, blocks, generations = _one(pipe, pool, way)
                times.append((prefill, exposed))
        consumer = Consumer(pool, link)
        pulls = [seconds_of(lambda: consumer.pull(blocks, generations, list(range(BLOCKS)))) for _ in range(COPIES)]
        copies = memcpy_seconds(pool)
        link.close()
        pipe.send("end")
        door.close()
    prefill, exposed = (statistics.median(one[i] for one in found["push"][1:]) for i in (0, 1))
    stays = statistics.median(one[0] for one in found["stay"][1:])
    name = f"hand-off of {PROMPT_TOKENS} tokens, 8B, pushed; prefill alone {stays * 1e3:.1f} ms"
    return [asdict(Handoff(name, pool.nbytes, prefill, exposed, statistics.median(pulls), copies, pushed=True))]


def _one(pipe: Connection, pool: DevicePoolMemory, way: str) -> tuple[float, float, list[int], list[int]]:
    """(seconds of prefill, seconds exposed, the source's blocks, their generations) of one prompt."""
    pipe.send(way)
    began = time.monotonic()
    all_blocks: list[int] = []
    all_generations: list[int] = []
    while True:
        if not pipe.poll(TO_START_S):
            raise RuntimeError("the process that computes says nothing")
        blocks, generations, digests, is_last, done = pipe.recv()
        ours = list(range(len(all_blocks), len(all_blocks) + len(blocks)))
        if way == "push" and list(pool.digests(ours)) != digests:
            raise RuntimeError(f"the digests of {len(blocks)} pushed blocks differ from those announced")
        all_blocks += blocks
        all_generations += generations
        if is_last:
            return done - began, time.monotonic() - done, all_blocks, all_generations


def compute(pipe: Connection) -> None:
    """The other process: one prompt whenever it is asked for one, until it is told to end or nobody is there."""
    import tempfile  # noqa: PLC0415
    from pathlib import Path  # noqa: PLC0415

    import torch  # noqa: PLC0415

    from benchmarks.gpu.announcing import Announcer  # noqa: PLC0415 (the engine)
    from benchmarks.gpu.model import build  # noqa: PLC0415
    from engine.models.device_decoder import DeviceDecoder  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as tactics, device_pool(INCARNATION, 2 * BLOCKS) as pool:
        model = build("deterministic", "bf16", Path(tactics))
        decoder = DeviceDecoder(model.decoder, model.library, model.runtime, None, 1)
        source = CudaIpcSource(pool, None, "")
        pipe.send((source.offer()[0], pool.num_blocks))
        layout = pool.layout
        link = CudaIpcLink(pipe.recv(), PeerPool(layout.layout_id, _OURS, BLOCKS, layout.block_bytes), pool)
        port = OnePrompt(link.begin_use())
        blocks = torch.as_tensor(pool, device=model.runtime.device)
        announcer = Announcer(decoder, pool, blocks, PROMPT_TOKENS, CHUNK_TOKENS, port)
        try:
            while (way := pipe.recv()) != "end":
                port.open = way == "push"
                for message in announcer.prompt():
                    pipe.send(message)
        except EOFError:
            pass  # whoever asked has ended
        model.runtime.settle()
        link.end_use()
        link.close()
        source.close()
