"""What is measured. Each case leaves its object as it found it, so that calls are alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.micro.instruments import Work
from benchmarks.micro.token_path import framing, routing
from engine.blocks.block_pool import BlockPool, ListGenerations
from engine.blocks.cached_block import BlockContent
from engine.config import EngineConfig
from engine.sampling.sampler import SamplingRow, sample
from engine.scheduling.request import Request
from engine.scheduling.scheduler import Scheduler
from wire.sampling import SamplingParams

VOCAB = 49_152
BLOCK_TOKENS = 32
ROWS = 16
_CACHED = 2048
"""Numbers whose exponentials, in and out, stay in the first-level cache."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Judged by instructions of one call."""

    name: str
    make: Callable[[], Work]


@dataclass(frozen=True, slots=True)
class Related:
    """Judged by the ratio of CPU times of `make()` and `yardstick()`."""

    name: str
    make: Callable[[], Work]
    yardstick: Callable[[], Work]


def pool_churn(num_blocks: int = 4096) -> Work:
    """A table of 32 new blocks opened, sealed and released in a pool whose blocks are all cached: each is evicted."""
    pool, serial = BlockPool(num_blocks, ListGenerations(num_blocks)), iter(range(1 << 62))

    def churn() -> None:
        owner = next(serial)
        pool.open(owner, (), 32)
        for index in range(32):
            pool.seal(owner, index, content(owner * 32 + index))
        pool.release(owner)

    for _ in range(num_blocks // 32 + 1):
        churn()
    return churn


def pool_reuse(num_blocks: int = 4096) -> Work:
    """A prompt of 32 blocks found in the prefix cache, opened with one block to grow into, and released."""
    pool = BlockPool(num_blocks, ListGenerations(num_blocks))
    contents = [content(index) for index in range(32)]
    names = [each.name for each in contents]
    pool.open("first", (), 32)
    for index, each in enumerate(contents):
        pool.seal("first", index, each)
    pool.release("first")

    def reuse() -> None:
        pool.open("again", names[: pool.cache.num_known(names)], 1)
        pool.release("again")

    return reuse


def content(number: int) -> BlockContent:
    """What a full block holds that follows block `number - 1`."""
    name, parent = number.to_bytes(16, "big"), (number - 1).to_bytes(16, "big", signed=True)
    return BlockContent(name, parent, (number,) * BLOCK_TOKENS, is_full=True)


def scheduler_with(
    running: int, waiting: int, prompt_tokens: int = 256, num_blocks: int = 16_384, seats: int | None = None
) -> Scheduler:
    """`running` requests that decode, and `waiting` more that find no seat where there are only as many."""
    config = EngineConfig(
        num_blocks=num_blocks,
        max_model_len=65_536,
        max_num_seqs=seats or running,
        max_num_batched_tokens=running * prompt_tokens,
    )
    scheduler = Scheduler(config, BlockPool(num_blocks, ListGenerations(num_blocks)), VOCAB)
    for number in range(running + waiting):
        scheduler.submit(make_request(number, prompt_tokens))
    step(scheduler)
    return scheduler


def make_request(number: int, prompt_tokens: int) -> Request:
    tokens = [(number * 7919 + position) % VOCAB for position in range(prompt_tokens)]
    return Request((number, 1), tokens, prompt_tokens, SamplingParams(max_tokens=60_000, ignore_eos=True))


def step(scheduler: Scheduler) -> None:
    """One step of the engine without its model: every request that catches up gets token 5."""
    for part in scheduler.schedule().scheduled:
        completes = part.completes
        scheduler.advance(part.request, part.num_new_tokens)
        if completes:
            part.request.tokens.append(5)


def forking(branches: int = 8) -> Work:
    """A request of 256 tokens forked into 8 branches, one step of all, which copies a block for each, and their end."""
    scheduler = scheduler_with(1, 0, seats=1 + branches)
    parent = scheduler.running[0]
    serial = iter(range(1, 1 << 62))

    def fork() -> None:
        for branch in range(branches):
            tokens = [*parent.tokens, branch]
            sampling = SamplingParams(max_tokens=60_000, ignore_eos=True)
            scheduler.fork(parent.key, Request((next(serial), 2), tokens, parent.num_prompt_tokens, sampling))
        step(scheduler)
        for request in scheduler.running[1:]:
            scheduler.end(request)

    return fork


def swapping(num_host_blocks: int = 2048) -> Work:
    """Two prompts of 3072 tokens take turns in a pool that holds one: each drives the other out, and finds itself."""
    config = EngineConfig(
        num_blocks=100, max_model_len=3200, max_num_batched_tokens=4096, num_host_blocks=num_host_blocks
    )
    pool = BlockPool(100, ListGenerations(100), num_host_blocks, config.host_min_tokens)
    scheduler = Scheduler(config, pool, VOCAB)
    serial = iter(range(1 << 62))

    def swap() -> None:
        for number in range(2):
            request = make_request(number, 3072)
            request.key = (next(serial), 1)
            scheduler.submit(request)
            step(scheduler)
            scheduler.end(request)

    return swap


def decode_steps(running: int = 64, waiting: int = 0) -> Work:
    """One block's length of decode steps of a full batch: every request seals and takes one block."""
    scheduler = scheduler_with(running, waiting)

    def steps() -> None:
        for _ in range(BLOCK_TOKENS):
            step(scheduler)

    return steps


def admission(prompt_tokens: int = 512) -> Work:
    """16 prompts submitted, hashed, admitted, computed and ended."""
    config = EngineConfig(num_blocks=4096, max_model_len=8192, max_num_batched_tokens=16 * prompt_tokens)
    scheduler = Scheduler(config, BlockPool(4096, ListGenerations(4096)), VOCAB)
    serial = iter(range(1 << 62))

    def admit() -> None:
        for _ in range(16):
            scheduler.submit(make_request(next(serial), prompt_tokens))
        step(scheduler)
        for request in list(scheduler.running):
            scheduler.end(request)

    for _ in range(20):  # until the pool is full of cached blocks
        admit()
    return admit


def drawing(rows: int = ROWS, **params: Any) -> Work:
    """One token for each of `rows` rows of logits."""
    logits = np.random.default_rng(0).normal(0.0, 3.0, (rows, VOCAB)).astype(np.float32)
    prompt = list(range(100, 228))
    chosen = [SamplingRow(SamplingParams(max_tokens=1000, seed=row, **params), prompt, 128) for row in range(rows)]
    return lambda: sample(logits, chosen)


def python_yardstick() -> Work:
    """Dictionary, list and call work of the kind the engine's Python does."""

    def turn() -> int:
        table: dict[int, list[int]] = {}
        for number in range(400):
            table.setdefault(number % 50, []).append(number)
        return sum(len(each) for each in table.values())

    return turn


def array_yardstick() -> Work:
    """`exp` of as many logits, in float64, on one core; of a few thousand again and again, so that no neighbour's use
    of memory makes it slower or faster than what it measures. A neighbour on the same core's other thread slows it
    more than the sampler: baselines are of a machine at rest, where what is measured against it costs most."""
    values = np.random.default_rng(0).normal(0.0, 3.0, _CACHED)
    out, turns = np.empty_like(values), ROWS * VOCAB // _CACHED

    def turn() -> None:
        for _ in range(turns):
            np.exp(values, out=out)

    return turn


COUNTED = (
    Counted("pool: 32 blocks taken by eviction, sealed, released", pool_churn),
    Counted("pool: 32 cached blocks found, opened, released", pool_reuse),
    Counted("scheduler: 32 decode steps of 64", decode_steps),
    Counted("scheduler: 32 decode steps of 64 while 1000 wait", lambda: decode_steps(waiting=1000)),
    Counted("scheduler: 16 prompts of 512 admitted and ended", admission),
    Counted("scheduler: 32 decode steps of 256", lambda: decode_steps(256)),
    Counted("scheduler: 8 branches forked, stepped and ended", forking),
    Counted("scheduler: 192 blocks swapped out and in", swapping),
    Counted("sampler: 16 greedy rows", lambda: drawing(temperature=0.0)),
    Counted("sampler: 16 rows by top-p", lambda: drawing(temperature=0.8, top_p=0.9)),
    Counted("worker: a step of 16 rows, framed", lambda: framing(16)),
    Counted("router: 16 steps of one stream, frame to event", lambda: routing(1)),
    Counted("router: 16 steps of 16 streams, frame to event", lambda: routing(16)),
)

RELATED = (
    Related("pool: eviction in 65536 blocks against 1024", lambda: pool_churn(65_536), lambda: pool_churn(1024)),
    Related("scheduler: 1000 waiting against none", lambda: decode_steps(waiting=1000), decode_steps),
    Related("scheduler: decode steps of 256 against 64", lambda: decode_steps(256), decode_steps),
    Related("scheduler: decode steps against plain Python", decode_steps, python_yardstick),
    Related("scheduler: admission against plain Python", admission, python_yardstick),
    Related("sampler: greedy against exp of the logits", lambda: drawing(temperature=0.0), array_yardstick),
    Related("sampler: draws against exp of the logits", lambda: drawing(temperature=1.0), array_yardstick),
    Related("sampler: top-p against exp", lambda: drawing(temperature=0.8, top_p=0.9), array_yardstick),
    Related("sampler: typical-p against exp", lambda: drawing(temperature=1.0, typical_p=0.9), array_yardstick),
    Related("sampler: top-p of flat rows against exp", lambda: drawing(temperature=2.0, top_p=0.9), array_yardstick),
)
