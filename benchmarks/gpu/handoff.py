"""KV from one process to another on one GPU: an engine computes prompts of 8k tokens into its pool and says which
blocks are complete, another process pulls them into its own over `cuda_ipc` and compares their digests.

Exposed is what prefill does not hide: from the step that ended the prompt until the last block has been compared. The
plain rate is that of all blocks at once, beside a device memcpy of as many bytes.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.gpu.model import BLOCK_TOKENS, LLAMA_8B
from engine.models.kv_layouts import decoder_kv_layout
from kvtransfer.cuda_runtime import CudaRuntime
from kvtransfer.device_kernels import CudaBlockKernels
from kvtransfer.device_pool import DevicePoolMemory
from kvtransfer.transport import BlockRead, PeerPool
from kvtransfer.transports.cuda_ipc import CudaIpcLink, CudaIpcSource

PROMPT_TOKENS, CHUNK_TOKENS = 8192, 2048
BLOCKS = PROMPT_TOKENS // BLOCK_TOKENS
ROUNDS, COPIES, INCARNATION, TO_START_S = 4, 10, 0xF00D, 100.0
Announced = tuple[list[int], list[int], list[bytes], bool, float]
"""(blocks, their generations, their digests, whether they are the last, when their step was done): one message."""


@dataclass(frozen=True, slots=True)
class Handoff:
    """Medians. Of `kv_bytes` each."""

    name: str
    kv_bytes: int
    prefill_seconds: float
    exposed_seconds: float
    pull_seconds: float
    """Of all blocks at once, with their generations looked at twice, without their digests."""
    memcpy_seconds: float
    pushed: bool = False


class Consumer:
    """Who pulls: block i of a prompt goes to block i here."""

    def __init__(self, pool: DevicePoolMemory, link: CudaIpcLink) -> None:
        self._pool, self._link = pool, link
        self._next = 0

    def take(self, blocks: list[int], generations: list[int], digests: list[bytes]) -> None:
        """Raises RuntimeError where what arrived is not what was announced."""
        ours = list(range(self._next, self._next + len(blocks)))
        self.pull(blocks, generations, ours)
        if list(self._pool.digests(ours)) != digests:
            raise RuntimeError(f"the digests of {len(blocks)} blocks differ from those announced")
        self._next += len(blocks)

    def pull(self, blocks: list[int], generations: list[int], ours: list[int]) -> None:
        for begin in range(0, len(blocks), self._pool.batch_blocks):
            part = range(begin, min(begin + self._pool.batch_blocks, len(blocks)))
            reads = [BlockRead((1, 1), blocks[i], generations[i], ours[i]) for i in part]
            if self._link.read_blocks(reads) != [generations[i] for i in part]:
                raise RuntimeError("blocks were given to others while they were read")

    def begin_again(self) -> None:
        self._next = 0


def measure() -> list[dict[str, Any]]:
    """A `Handoff`, as plain data."""
    with other_process(compute) as pipe, device_pool(7) as pool:
        address, num_blocks = pipe.recv()
        link = CudaIpcLink(
            address, PeerPool(pool.layout.layout_id, INCARNATION, num_blocks, pool.layout.block_bytes), pool
        )
        consumer = Consumer(pool, link)
        found = [_one(pipe, consumer) for _ in range(ROUNDS)][1:]  # the first loads and allocates
        blocks, generations = found[-1].blocks, found[-1].generations
        pulls = [seconds_of(lambda: consumer.pull(blocks, generations, list(range(BLOCKS)))) for _ in range(COPIES)]
        copies = memcpy_seconds(pool)
        link.close()
    prefill = statistics.median(one.prefill_seconds for one in found)
    exposed = statistics.median(one.exposed_seconds for one in found)
    name = f"hand-off of {PROMPT_TOKENS} tokens, 8B, pulled over cuda_ipc"
    return [asdict(Handoff(name, pool.nbytes, prefill, exposed, statistics.median(pulls), copies))]


@dataclass(frozen=True, slots=True)
class _Taken:
    """One prompt."""

    prefill_seconds: float
    exposed_seconds: float
    blocks: list[int]
    generations: list[int]


def _one(pipe: Connection, consumer: Consumer) -> _Taken:
    consumer.begin_again()
    pipe.send("prefill")
    began = time.monotonic()
    all_blocks: list[int] = []
    all_generations: list[int] = []
    while True:
        if not pipe.poll(TO_START_S):
            raise RuntimeError("the process that computes says nothing")
        blocks, generations, digests, is_last, done = pipe.recv()
        consumer.take(blocks, generations, digests)
        all_blocks += blocks
        all_generations += generations
        if is_last:
            return _Taken(done - began, time.monotonic() - done, all_blocks, all_generations)


def memcpy_seconds(pool: DevicePoolMemory) -> float:
    """Of as many bytes as the pool has, within this process."""
    runtime = pool.runtime
    other, stream, event = runtime.allocate(pool.nbytes), runtime.new_stream(), runtime.new_event()

    def copy() -> None:
        runtime.copy(other, pool.address, pool.nbytes, stream)
        runtime.record(event, stream)
        while not runtime.is_done(event):
            pass

    seconds = statistics.median([seconds_of(copy) for _ in range(COPIES)])
    runtime.free(other)
    return seconds


def seconds_of(run: Any) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


@contextmanager
def device_pool(incarnation: int, num_blocks: int = BLOCKS) -> Iterator[DevicePoolMemory]:
    from engine.ops.cuda.library import INSTALLED  # noqa: PLC0415 (torch)

    layout = decoder_kv_layout(LLAMA_8B, "bfloat16", BLOCK_TOKENS, "auto")
    spans = layout.num_layers * layout.planes * layout.num_kv_heads
    pool = DevicePoolMemory(layout, num_blocks, incarnation, CudaRuntime(), CudaBlockKernels(INSTALLED, spans))
    try:
        yield pool
    finally:
        pool.close()


@contextmanager
def other_process(target: Callable[[Connection], None]) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(TO_START_S):
            raise RuntimeError("the process that computes did not start")
        yield ours
    finally:
        ours.close()
        process.kill()
        process.join()


def compute(pipe: Connection) -> None:
    """The other process: one prompt whenever it is asked for one, until nobody is there any more."""
    import tempfile  # noqa: PLC0415
    from pathlib import Path  # noqa: PLC0415

    import torch  # noqa: PLC0415

    from benchmarks.gpu.announcing import Announcer  # noqa: PLC0415 (the engine)
    from benchmarks.gpu.model import build  # noqa: PLC0415
    from engine.models.device_decoder import DeviceDecoder  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as tactics, device_pool(INCARNATION, 2 * BLOCKS) as pool:
        model = build("deterministic", "bf16", Path(tactics))
        decoder = DeviceDecoder(model.decoder, model.library, model.runtime, None, 1)
        blocks = torch.as_tensor(pool, device=model.runtime.device)
        announcer = Announcer(decoder, pool, blocks, PROMPT_TOKENS, CHUNK_TOKENS)
        source = CudaIpcSource(pool, None, "")
        pipe.send((source.offer()[0], pool.num_blocks))
        try:
            while pipe.recv() == "prefill":
                for message in announcer.prompt():
                    pipe.send(message)
        except EOFError:
            source.close()
