"""What `benchmarks.gpu` times of an engine and a hand-off is their own work: tokens counted, blocks checked."""

# ruff: noqa: E402 (imports stand behind what may be missing)
from __future__ import annotations

import contextlib
import itertools
import json
from functools import partial

import pytest
import torch
from device_models import SPEC, device_decoder, runtime_of

for module in ("engine._sampling", "structlog", "kvtransfer._native"):
    pytest.importorskip(module, reason=f"engines and hand-offs need {module}: install it, build the native modules")

from benchmarks.gpu import handoff, serving, steps
from benchmarks.gpu.announcing import Announcer
from benchmarks.gpu.handoff import Consumer
from benchmarks.gpu.model import Model
from benchmarks.gpu.serving import Load, Requests, buckets, make_engine, rate_at_once, steady_rate
from engine.blocks.block_pool import ListGenerations
from engine.device.buckets import Buckets
from engine.models.device_decoder import DeviceDecoder
from kvtransfer.kv_checksum import checksum

VOCABULARY = SPEC.vocab_size


def _engine(platform, load: Load, num_blocks: int):
    sizes = Buckets((1, load.sequences), (load.prompt + load.answer,))
    decoder = device_decoder(platform, runtime_of(platform), sizes)
    return make_engine(decoder, load, num_blocks, platform.device)


def test_the_steady_state_is_reached_and_every_token_in_it_counted(platform):
    load = Load(20, 6, 4)
    engine, ticks = _engine(platform, load, 12), itertools.count()
    rate, seconds, tokens, steps = steady_rate(engine, load, VOCABULARY, 8.0, lambda: float(next(ticks)))
    assert rate == tokens / seconds
    assert steps >= 6
    assert steps <= tokens <= load.sequences * steps
    assert engine.load().running + engine.load().waiting == load.sequences
    engine.check()


def test_requests_together_are_answered_to_the_last_token(platform):
    load = Load(20, 6, 4)
    engine = _engine(platform, load, 12)
    _, _, tokens, steps = rate_at_once(engine, load, VOCABULARY, seed=1)
    assert tokens == 24
    assert steps >= 6
    assert engine.stats.prefix_hit_tokens == 0
    assert not engine.has_work()


def test_contexts_of_the_first_requests_are_spread_as_they_stay(platform):
    load = Load(20, 40, 4)
    engine = _engine(platform, load, 12)
    Requests(engine, load, VOCABULARY).submit_all(spread=True)
    found = [(request.num_tokens, request.sampling.max_tokens) for request in engine._scheduler.requests.values()]
    assert all(tokens + wanted == 60 for tokens, wanted in found)
    assert len({tokens for tokens, _ in found}) > 1


@pytest.fixture
def tiny(platform, monkeypatch):
    """A small model where measurements build the large one."""
    runtime = runtime_of(platform)
    model = Model(device_decoder(platform, runtime, None)._decoder, platform.library, runtime, 1000)
    for module in (serving, steps):
        monkeypatch.setattr(module, "build", lambda mode, weights, tactics: model)
        monkeypatch.setattr(module, "LLAMA_8B", SPEC)
    monkeypatch.setattr(DeviceDecoder, "kv_bytes", lambda self, *_: 12 * self.kv_layout(32, "auto").block_bytes)
    monkeypatch.setattr(serving, "AT_ONCE", 3)
    monkeypatch.setattr(steps, "SIZES", ((1, 40), (3, 70)))
    monkeypatch.setattr(steps, "decode_time", partial(steps.decode_time, rounds=1, steps=2))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return model


@pytest.mark.parametrize("window_s", [None, 1e-3])
def test_a_rate_says_what_it_is_of(tiny, tmp_path, window_s):
    if tiny.library.device_type == "cuda":
        pytest.skip("measured there by the check itself")
    (rate,) = serving.measure("fast", "bf16", tmp_path, 20, 6, window_s=window_s)
    assert rate["at_once"] is (window_s is None)
    assert rate["sequences"] == (3 if window_s is None else 5)
    assert rate["output_tokens_per_s"] > 0
    assert 1 <= rate["rows_of_a_step"] <= rate["sequences"]
    assert json.loads(json.dumps(rate)) == rate
    assert set(rate) >= {"mode", "precision", "prompt_tokens", "new_tokens"}


def test_steps_of_every_size_have_a_floor(tiny, tmp_path):
    if tiny.library.device_type == "cuda":
        pytest.skip("measured there by the check itself")
    found = steps.measure("deterministic", "bf16", tmp_path)
    assert [(each["sequences"], each["context"]) for each in found] == [(1, 40), (3, 70)]
    assert all(each["seconds"] > 0 and each["host_seconds"] > 0 for each in found)
    assert found[1]["floor_bytes"] > found[0]["floor_bytes"] > 0
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("num_blocks", [300, 30_000])
def test_a_load_fits_its_pool(num_blocks):
    load = Load.filling(1000, 1000, num_blocks)
    assert load.sequences * (1500 // 32 + 1) <= num_blocks
    assert load.sequences <= 1024
    sizes = buckets(load.sequences, 2000).sequences
    assert sizes == tuple(sorted(set(sizes)))
    assert sizes[-1] == load.sequences


class _Runtime:
    """A device that has done everything at once."""

    def __init__(self) -> None:
        self.copied = 0

    def new_event(self) -> int:
        return 1

    def new_stream(self) -> int:
        return 1

    def record(self, event: int, stream: int) -> None:
        assert (event, stream) == (1, 1)

    def is_done(self, event: int) -> bool:
        return event == 1

    def allocate(self, nbytes: int) -> int:
        return nbytes

    def free(self, address: int) -> None:
        assert address

    def copy(self, to: int, source: int, nbytes: int, stream: int) -> None:
        self.copied += nbytes


class _Pool:
    """A pool over a tensor, as an announcer and a consumer see one."""

    batch_blocks = 2

    def __init__(self, layout, num_blocks: int, device) -> None:
        self.layout, self.num_blocks, self.runtime = layout, num_blocks, _Runtime()
        self.blocks = torch.zeros(num_blocks, layout.block_bytes, dtype=torch.uint8, device=device)
        self.nbytes, self.address = num_blocks * layout.block_bytes, 8
        generations = ListGenerations(num_blocks)
        self.bump, self.get = generations.bump, generations.get

    def digests(self, blocks) -> tuple[bytes, ...]:
        return tuple(checksum(self.blocks[block].cpu().numpy().tobytes()) for block in blocks)

    def seal(self, blocks, written: int):
        assert written
        digests = self.digests(blocks)
        return type("Seal", (), {"digests": lambda self: digests})()


class _Link:
    """Copies at once; `stale` blocks have been given to others, `torn` ones arrive damaged."""

    def __init__(self, source: _Pool, target: _Pool, stale: int = -1, torn: int = -1) -> None:
        self._source, self._target, self._stale, self._torn = source, target, stale, torn

    def close(self) -> None:
        pass

    def read_blocks(self, reads) -> list[int]:
        assert len(reads) <= self._target.batch_blocks
        for read in reads:
            self._target.blocks[read.dest_block] = self._source.blocks[read.block]
            if read.block == self._torn:
                self._target.blocks[read.dest_block, 5] ^= 1
        return [read.generation + (read.block == self._stale) for read in reads]


@pytest.fixture
def source(platform):
    decoder = device_decoder(platform, runtime_of(platform), None)
    pool = _Pool(decoder.kv_layout(32, "auto"), 12, platform.device)
    return pool, Announcer(decoder, pool, pool.blocks, prompt=140, chunk=64)


def test_a_prompt_is_announced_in_chunks_and_arrives_whole(source, platform):
    pool, announcer = source
    for _ in range(2):
        there = _Pool(pool.layout, 5, platform.device)
        consumer, pulled = Consumer(there, _Link(pool, there)), []
        for blocks, generations, digests, is_last, _ in announcer.prompt():
            consumer.take(blocks, generations, digests)
            pulled += blocks
            assert is_last is (len(pulled) == 5)
        assert torch.equal(there.blocks, pool.blocks[pulled])
        assert bool(there.blocks.any(dim=1).all())


@pytest.mark.parametrize(("fault", "said"), [("stale", "given to others"), ("torn", "differ from those announced")])
def test_what_is_not_what_was_announced_is_an_error_and_not_a_figure(source, platform, fault, said):
    pool, announcer = source
    there = _Pool(pool.layout, 5, platform.device)
    blocks, generations, digests, *_ = next(announcer.prompt())
    with pytest.raises(RuntimeError, match=said):
        Consumer(there, _Link(pool, there, **{fault: blocks[-1]})).take(blocks, generations, digests)


class _Pipe:
    """To an announcer, as if it were a process."""

    def __init__(self, announcer: Announcer, num_blocks: int) -> None:
        self._announcer, self._messages = announcer, iter([(b"address", num_blocks)])

    def send(self, word: str) -> None:
        assert word == "prefill"
        self._messages = self._announcer.prompt()

    def poll(self, seconds: float) -> bool:
        return seconds > 0

    def recv(self):
        return next(self._messages)


def test_a_hand_off_has_a_prefill_a_part_that_is_exposed_and_a_rate(source, platform, monkeypatch):
    pool, announcer = source
    there = _Pool(pool.layout, 5, platform.device)
    monkeypatch.setattr(
        handoff, "other_process", lambda target: contextlib.nullcontext(_Pipe(announcer, pool.num_blocks))
    )
    monkeypatch.setattr(handoff, "device_pool", lambda incarnation: contextlib.nullcontext(there))
    monkeypatch.setattr(handoff, "CudaIpcLink", lambda address, expected, ours: _Link(pool, ours))
    monkeypatch.setattr(handoff, "BLOCKS", 5)
    (found,) = handoff.measure()
    assert found["kv_bytes"] == there.nbytes
    assert all(found[f"{what}_seconds"] > 0 for what in ("prefill", "exposed", "pull", "memcpy"))
    assert there.runtime.copied == 10 * there.nbytes
    assert found["pushed"] is False
    assert json.loads(json.dumps(found)) == found
