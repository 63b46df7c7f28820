"""What an engine gives out: requests of one length through scheduler, captured graphs and sampler, colocated.

The rate is that of the steady state: as many requests as the KV pool holds are always in the engine, each somewhere in
its answer, and whoever ends is followed by another. Those that are there from the start begin with a prompt that is as
much longer as their answer is shorter, so that contexts are spread from the first step on as they will stay.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.model import BLOCK_TOKENS, LLAMA_8B, WeightFormat, build
from engine.blocks.block_pool import BlockPool, ListGenerations
from engine.config import EngineConfig
from engine.device.buckets import Buckets
from engine.device.kv_memory import DeviceKVCache
from engine.engine import Engine
from engine.models.device_decoder import DeviceDecoder
from engine.scheduling.request import Request
from engine.tuning.decision import Mode
from wire.sampling import FinishReason, SamplingParams

BATCHED_TOKENS = 8192
MOST_SEQUENCES = 1024
_FILL = 0.9
"""Of the blocks: so much of them holds requests half way through, the rest is for those that are further."""
_UTILIZATION = 0.9
AT_ONCE = 64
"""Requests of the comparison with another engine: all asked at once, answered to the last."""


@dataclass(frozen=True, slots=True)
class Load:
    """Requests of `prompt` tokens that want `answer` tokens, so many at a time."""

    prompt: int
    answer: int
    sequences: int

    @classmethod
    def filling(cls, prompt: int, answer: int, num_blocks: int) -> Load:
        """As many as a pool holds."""
        blocks = -(-(prompt + answer // 2) // BLOCK_TOKENS) + 1
        return cls(prompt, answer, max(1, min(MOST_SEQUENCES, int(num_blocks * _FILL) // blocks)))


@dataclass(frozen=True, slots=True)
class Rate:
    """Of an engine in one mode. `at_once`: all requests came together, and the time is that until the last was done."""

    name: str
    mode: Mode
    precision: WeightFormat
    prompt_tokens: int
    new_tokens: int
    sequences: int
    at_once: bool
    output_tokens_per_s: float
    seconds: float
    rows_of_a_step: float
    seconds_of_a_step: float
    preemptions: int


class Requests:
    """Random prompts, greedy answers that end by length alone."""

    def __init__(self, engine: Engine, load: Load, vocabulary: int, seed: int = 1) -> None:
        self._engine, self._load, self._vocabulary = engine, load, vocabulary
        self._random = random.Random(seed)  # noqa: S311 - a load, not a secret
        self._keys = 0
        self._silent: set[int] = set()

    @property
    def first_are_silent(self) -> bool:
        """Whether any of those submitted together has given out no token yet."""
        return bool(self._silent)

    def submit(self, given: int = 0) -> None:
        """One, of whose answer `given` tokens are a part of the prompt already."""
        self._keys += 1
        tokens = self._random.choices(range(self._vocabulary), k=self._load.prompt + given)
        sampling = SamplingParams(max_tokens=self._load.answer - given, temperature=0.0, ignore_eos=True)
        self._engine.submit(Request((self._keys, 1), tokens, len(tokens), sampling))

    def submit_all(self, *, spread: bool) -> None:
        for _ in range(self._load.sequences):
            self.submit(self._random.randrange(self._load.answer) if spread else 0)
        self._silent = set(range(1, self._keys + 1))

    def step(self) -> tuple[int, int]:
        """(tokens given out, requests that ended). Raises the error of one that failed."""
        output = self._engine.step()
        for _, error in output.failed:
            raise error
        self._silent.difference_update(row.key[0] for row in output.rows)
        tokens = sum(len(row.tokens) for row in output.rows)
        return tokens, sum(row.finish is not FinishReason.NONE for row in output.rows)


def steady_rate(
    engine: Engine, load: Load, vocabulary: int, window_s: float, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float, int, int]:
    """(tokens/s, seconds, tokens, steps) of the steady state: for `window_s` from when every first request has begun
    its answer."""
    requests = Requests(engine, load, vocabulary)
    requests.submit_all(spread=True)
    while requests.first_are_silent:
        _, ended = requests.step()
        for _ in range(ended):
            requests.submit()
    tokens, steps, began = 0, 0, clock()
    while clock() - began < window_s or not tokens:
        given, ended = requests.step()
        for _ in range(ended):
            requests.submit()
        tokens, steps = tokens + given, steps + 1
    seconds = clock() - began
    return tokens / seconds, seconds, tokens, steps


def rate_at_once(
    engine: Engine, load: Load, vocabulary: int, seed: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float, int, int]:
    """The same of all requests together, from the first step to the last token. Another `seed`, other prompts: those
    that were there before are cached."""
    requests = Requests(engine, load, vocabulary, seed)
    requests.submit_all(spread=False)
    tokens, steps, began = 0, 0, clock()
    while engine.has_work():
        given, _ = requests.step()
        tokens, steps = tokens + given, steps + 1
    seconds = clock() - began
    if tokens != load.sequences * load.answer:
        raise RuntimeError(f"{tokens} tokens were given out, expected {load.sequences * load.answer}")
    return tokens / seconds, seconds, tokens, steps


def make_engine(decoder: DeviceDecoder, load: Load, num_blocks: int, device: torch.device) -> Engine:
    """With a pool of so many blocks, warmed up."""
    config = EngineConfig(
        num_blocks=num_blocks, max_model_len=load.prompt + load.answer, block_tokens=BLOCK_TOKENS,
        max_num_seqs=load.sequences, max_num_batched_tokens=max(BATCHED_TOKENS, load.sequences + BLOCK_TOKENS),
    )  # fmt: skip
    cache = DeviceKVCache.zeros(decoder.kv_layout(BLOCK_TOKENS, "auto"), num_blocks, device)
    engine = Engine(decoder, cache, config, BlockPool(num_blocks, ListGenerations(num_blocks)))
    engine.warm_up()
    return engine


def measure(
    mode: Mode, weights: WeightFormat, tactics: Path, prompt: int, answer: int, *, window_s: float | None
) -> list[dict[str, Any]]:
    """A `Rate` of the 8B model, as plain data; without a window that of `AT_ONCE` requests together."""
    model = build(mode, weights, tactics)
    length = prompt + answer
    probe = DeviceDecoder(model.decoder, model.library, model.runtime, None, MOST_SEQUENCES)
    num_bytes = probe.kv_bytes(BLOCK_TOKENS, BATCHED_TOKENS, _UTILIZATION)
    num_blocks = num_bytes // probe.kv_layout(BLOCK_TOKENS, "auto").block_bytes
    load = Load(prompt, answer, AT_ONCE) if window_s is None else Load.filling(prompt, answer, num_blocks)
    if window_s is None:
        num_blocks = (AT_ONCE + 1) * -(-length // BLOCK_TOKENS)
    decoder = DeviceDecoder(
        model.decoder, model.library, model.runtime, buckets(load.sequences, length), load.sequences
    )
    engine = make_engine(decoder, load, num_blocks, model.runtime.device)
    try:
        if window_s is None:
            rate_at_once(engine, load, LLAMA_8B.vocab_size, 1)  # captures, and whatever else happens once
            found = rate_at_once(engine, load, LLAMA_8B.vocab_size, 2)
        else:
            found = steady_rate(engine, load, LLAMA_8B.vocab_size, window_s)
    finally:
        model.runtime.forget_captures()
    rate, seconds, tokens, steps = found
    what = f"{AT_ONCE} of {prompt}/{answer} at once" if window_s is None else f"{prompt}/{answer}"
    name = f"engine, 8B {weights}, {mode}, {what}, {load.sequences} sequences"
    per_step = (tokens / steps, seconds / steps)
    made = Rate(
        name, mode, weights, prompt, answer, load.sequences, window_s is None, rate, seconds, *per_step,
        engine.stats.preemptions,
    )  # fmt: skip
    return [asdict(made)]


def buckets(sequences: int, length: int) -> Buckets:
    """Graphs for a batch that is nearly always full: capturing all sizes would take longer than the measurement."""
    sizes = {1, min(8, sequences), *(max(1, sequences * eighths // 8) for eighths in (1, 2, 4, 6, 7, 8))}
    return Buckets(tuple(sorted(sizes)), (length,))
