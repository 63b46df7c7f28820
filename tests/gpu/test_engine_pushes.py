"""An engine that pushes: what it calls pushed lies in the peer's blocks, and each target is given back once."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from device_models import device_decoder, runtime_of

from engine.device.buckets import Buckets
from engine.device.kv_memory import DeviceKVCache

pytest.importorskip("engine._sampling", reason="the engine's own native modules are not built here")

from engine.blocks.block_pool import BlockPool, ListGenerations
from engine.config import EngineConfig
from engine.device.device_lost import DeviceLost
from engine.engine import Engine
from engine.scheduling.request import Request, RequestKind
from engine.steps.peer_blocks import PeerBlocks
from wire.errors import ErrorCode, SpliceError
from wire.sampling import SamplingParams

BLOCK, PEER_BLOCKS = 16, 24


class RecordingPort:
    """A `PushPort` that gives out blocks of one tensor, and knows what is under way."""

    def __init__(self, seed: int = 1, chance: float = 1.0) -> None:
        self.blocks: dict[object, tuple[int, ...]] = {}
        self.first = 0
        self.under_way: list[object] = []
        self.launches = 0
        self.address = 0
        self._random, self._chance = random.Random(seed), chance

    def begin(self, key: object) -> PeerBlocks | None:
        if key not in self.blocks or self._random.random() >= self._chance:
            return None
        assert key not in self.under_way, "a second launch of the request before the first was reported"
        self.under_way.append(key)
        return PeerBlocks(self.address, self.first, self.blocks[key])

    def launched(self, keys, event: int) -> None:
        assert event > 0
        for key in keys:
            self.under_way.remove(key)
        self.launches += 1


class PrefillBench:
    """An engine on a device that computes prompts for others, and the peer's cache."""

    def __init__(self, platform, port: RecordingPort, *, ahead: bool = True, num_tokens: int = 32) -> None:
        config = EngineConfig(
            num_blocks=16, block_tokens=BLOCK, max_model_len=96, max_num_seqs=4, max_num_batched_tokens=num_tokens,
            async_scheduling=ahead,
        )  # fmt: skip
        self.model = device_decoder(platform, runtime_of(platform), Buckets.up_to(4, 96))
        layout = self.model.kv_layout(BLOCK, "auto")
        self.cache = DeviceKVCache.zeros(layout, config.num_blocks, platform.device)
        self.peer = DeviceKVCache.zeros(layout, PEER_BLOCKS, platform.device)
        self.peer.blocks.fill_(0xAB)
        self.engine = Engine(self.model, self.cache, config, BlockPool(16, ListGenerations(16)))
        assert self.engine.can_push
        self.port = port
        port.address = self.peer.blocks.data_ptr()
        self.engine.push_through(port)
        self.pushed: dict[object, int] = {}
        self.failed: list[object] = []
        self.tokens: dict[object, int] = {}

    def submit(self, number: int, tokens: list[int], granted: tuple[int, ...] = (), **sampling: object) -> None:
        key = (number, 1)
        params = SamplingParams(**{"max_tokens": 2, "temperature": 0.0, "ignore_eos": True, **sampling})
        self.engine.submit(Request(key, tokens, len(tokens), params, kind=RequestKind.PREFILL))
        if granted:
            self.port.blocks[key] = granted

    def run(self) -> None:
        while self.engine.has_work():
            output = self.engine.step()
            self.engine.check()
            self.failed += [key for key, _ in output.failed]
            self.tokens.update({row.key: row.tokens[0] for row in output.rows if row.tokens})
            for done in output.computed:
                self._check(done)
                if done.is_last:
                    self.engine.release_hold(done.key)
        assert not self.port.under_way

    def _check(self, done) -> None:
        """Rows of tokens of every block that is called pushed are here and there the same."""
        here, there = (cache.elements().view(torch.int16).cpu().numpy() for cache in (self.cache, self.peer))
        first = done.pushed_from
        for index, block in enumerate(done.block_ids, start=done.first_block):
            if first is None or index < first:
                continue
            rows = min(done.num_tokens - index * BLOCK, BLOCK)
            target = self.port.blocks[done.key][index - self.port.first]
            np.testing.assert_array_equal(there[target][:, :, :, :rows], here[block][:, :, :, :rows])
            self.pushed[done.key] = self.pushed.get(done.key, 0) + 1


def _prompt(seed: int, length: int) -> list[int]:
    return [(7 * i * i + 3 * i + seed) % 300 for i in range(length)]


@pytest.mark.parametrize("ahead", [True, False])
def test_prompts_in_chunks_are_pushed_whole_and_their_tokens_are_those_of_prompts_that_stay(platform, ahead):
    plain = PrefillBench(platform, RecordingPort(), ahead=ahead)
    bench = PrefillBench(platform, RecordingPort(), ahead=ahead)
    for one in (plain, bench):
        one.submit(1, _prompt(1, 41), () if one is plain else (20, 3, 7))
        one.submit(2, _prompt(2, 17))
        one.run()
    assert bench.pushed == {(1, 1): 3}
    assert not plain.pushed
    assert plain.port.launches == 0
    assert bench.tokens == plain.tokens


def test_blocks_found_in_the_prefix_cache_are_not_called_pushed(platform):
    bench = PrefillBench(platform, RecordingPort())
    bench.submit(1, _prompt(1, 40))
    bench.run()
    bench.submit(2, [*_prompt(1, 32), *_prompt(5, 9)], (20, 3, 7))
    bench.run()
    assert bench.engine.stats.prefix_hit_tokens == 32
    assert bench.pushed == {(2, 1): 1}


@pytest.mark.parametrize("seed", range(3))
def test_grants_that_come_and_go_while_steps_run_ahead_never_leave_a_block_half_pushed(platform, seed):
    bench = PrefillBench(platform, RecordingPort(seed, chance=0.7), num_tokens=24)
    for number in range(1, 4):
        bench.submit(number, _prompt(number + seed, 30 + 9 * number), tuple(range(6 * number, 6 * number + 6)))
    bench.run()
    assert bench.port.launches > 2
    assert not bench.failed


def test_what_was_announced_is_not_written_again(platform):
    """The peer may have believed it; and from where the prompt was, it might be written with other bits."""
    bench = PrefillBench(platform, RecordingPort())
    bench.submit(1, _prompt(1, 40), (20, 3, 7))
    request = next(iter(bench.engine._scheduler.requests.values()))
    request.num_announced_blocks = 2
    bench.run()
    assert bench.pushed == {(1, 1): 1}
    untouched = torch.full_like(bench.peer.blocks[0], 0xAB)
    assert torch.equal(bench.peer.blocks[20], untouched)
    assert torch.equal(bench.peer.blocks[3], untouched)


@pytest.mark.parametrize("ahead", [True, False])
def test_a_step_that_fails_in_its_midst_gives_its_targets_back_behind_what_it_launched(platform, ahead, monkeypatch):
    bench = PrefillBench(platform, RecordingPort(), ahead=ahead)
    first, second = bench.model._decoder._blocks
    calls = []

    def fails_at_first(*arguments):
        calls.append(len(bench.port.under_way))
        if len(calls) == 1:
            raise SpliceError(ErrorCode.INTERNAL_ERROR, "a launch was refused")
        return second(*arguments)

    monkeypatch.setattr(bench.model._decoder, "_blocks", [first, fails_at_first])
    bench.submit(1, _prompt(1, 20), (20, 3))
    bench.submit(2, _prompt(2, 10), (9,))
    bench.run()
    assert calls[0] == 2
    assert not bench.failed
    assert bench.pushed == {(1, 1): 2, (2, 1): 1}
    assert bench.port.launches >= 2


@pytest.mark.parametrize("ahead", [True, False])
def test_blocks_are_called_computed_when_the_device_has_computed_them(platform, ahead, monkeypatch):
    """A chunk that draws nothing: neither a token nor logits come back by which the host would know."""
    bench = PrefillBench(platform, RecordingPort(), ahead=ahead)
    runtime = bench.model._runtime
    fence = runtime.download(runtime.pinned(8), torch.zeros(8, dtype=torch.uint8, device=runtime.device))
    passed = []

    def noting(kind: type, name: str) -> None:
        wait = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda self: (passed.append(name), wait(self)))

    noting(type(runtime), "settle")
    noting(type(fence), "wait")
    bench.submit(1, _prompt(1, 60))
    told = 0
    while not told:
        passed.clear()
        told = len(bench.engine.step().computed)
    assert passed


def test_a_request_that_ends_while_its_chunk_is_on_its_way_gives_its_target_back(platform):
    bench = PrefillBench(platform, RecordingPort())
    bench.submit(1, _prompt(1, 60), (20, 3, 7, 8))
    bench.engine.step()
    bench.engine.abort((1, 1))
    bench.run()
    assert bench.port.launches >= 1


def test_a_target_is_not_given_back_where_nobody_can_say_when_the_device_is_done(platform, monkeypatch):
    bench = PrefillBench(platform, RecordingPort(), ahead=False)

    def lost() -> int:
        raise DeviceLost("the GPU is lost to this process")

    monkeypatch.setattr(bench.model._runtime, "record", lost)
    bench.submit(1, _prompt(1, 10), (20,))
    with pytest.raises(DeviceLost):
        bench.engine.step()
    assert bench.port.under_way == [(1, 1)]
    assert bench.port.launches == 0
