"""An engine that computes prompts into a pool of device memory and says which blocks can be read."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import torch

from benchmarks.gpu.handoff import Announced
from engine.blocks.block_pool import BlockPool
from engine.config import EngineConfig
from engine.device.kv_memory import DeviceKVCache
from engine.engine import Engine
from engine.models.device_decoder import DeviceDecoder
from engine.scheduling.request import Request, RequestKind
from engine.steps.pushes import PushPort
from kvtransfer.device_pool import DevicePoolMemory
from wire.sampling import SamplingParams


class Announcer:
    """One prompt at a time, in chunks, each announced when the device has computed it."""

    def __init__(
        self,
        decoder: DeviceDecoder,
        pool: DevicePoolMemory,
        blocks: torch.Tensor,
        prompt: int,
        chunk: int,
        port: PushPort | None = None,
    ) -> None:
        """`blocks`: the memory of `pool`, uint8 `[num_blocks, block_bytes]`; `port`: where rows go besides."""
        self._pool, self._prompt, self._vocabulary = pool, prompt, decoder.spec.vocab_size
        self._written, self._keys = pool.runtime.new_event(), itertools.count(1)
        pool.runtime.record(self._written, pool.runtime.new_stream())
        config = EngineConfig(
            num_blocks=pool.num_blocks, max_model_len=prompt + pool.layout.block_tokens,
            block_tokens=pool.layout.block_tokens, max_num_seqs=1, max_num_batched_tokens=chunk, max_step_ms=1e9,
            max_mixed_step_ms=1e9,
        )  # fmt: skip
        self._engine = Engine(decoder, DeviceKVCache(pool.layout, blocks), config, BlockPool(pool.num_blocks, pool))
        if port is not None:
            self._engine.push_through(port)

    def prompt(self) -> Iterator[Announced]:
        """Of a new one, all its blocks; they are given back when the last was announced and the next prompt comes."""
        number = next(self._keys)
        tokens = torch.randint(0, self._vocabulary, (self._prompt,), generator=torch.Generator().manual_seed(number))
        key, sampling = (number, 1), SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)
        self._engine.release_hold((number - 1, 1))
        self._engine.submit(Request(key, tokens.tolist(), self._prompt, sampling, RequestKind.PREFILL))
        while self._engine.has_work():
            output = self._engine.step()
            for _, error in output.failed:
                raise error
            done = time.monotonic()
            for part in output.computed:
                blocks = list(part.block_ids)
                generations = [self._pool.get(block) for block in blocks]
                digests = list(self._pool.seal(blocks, self._written).digests())
                yield blocks, generations, digests, part.is_last, done
