"""A decode worker's requests end exactly once, and their memory comes back once nothing can write to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from role_bench import RoleBench, submit

from decode_worker.role import DecodeRole
from engine.scheduling.request import RequestKind
from kvtransfer.handoff import HandoffStats, KvFinalData
from wire.convert import sampling_to_proto
from wire.sampling import BeamSearch, FinishReason, SamplingParams
from wire.text.answer_text import AnswerText
from wire.text.vocabulary import Vocabulary, load_tokenizer
from wire.v1 import worker_pb2
from worker.answer_texts import AnswerTexts

RESERVE, GENERATE = RequestKind.RESERVE, RequestKind.GENERATE
NO_STATS = HandoffStats("", 0, 0, 0.0, 0.0, 0, 0)
NOBODY = "127.0.0.1:9"


@pytest.fixture
async def bench(tiny: Path) -> AsyncIterator[RoleBench[DecodeRole]]:
    bench = RoleBench(tiny, DecodeRole)
    await bench.role.start()
    yield bench
    await bench.role.close()


def attach(number: int = 1, attempt: int = 1) -> worker_pb2.Attach:
    return worker_pb2.Attach(
        request=number, attempt=attempt, source_worker="p", source_incarnation=9, source_endpoint=NOBODY
    )


async def settle(bench: RoleBench[DecodeRole], rounds: int = 100) -> None:
    """Lets the hand-off's loop and the engine alternate until nothing is left."""
    for _ in range(rounds):
        await asyncio.sleep(0.02)
        bench.turn()
        if bench.is_empty:
            return


async def test_a_local_request_streams_to_its_end(bench: RoleBench[DecodeRole]) -> None:
    bench.role.submit(GENERATE, submit(), bench.session)
    bench.turn(12)
    assert len(bench.session.tokens) == 8
    assert [seq for frame in bench.session.of("frame") for seq in frame.seq] == list(range(8))
    assert bench.is_empty


async def test_stop_strings_of_a_search_are_read_with_the_models_own_tokenizer(bench: RoleBench[DecodeRole]) -> None:
    vocabulary = Vocabulary(load_tokenizer(bench.card), bench.card.tokenizer_json)
    free = BeamSearch(width=2, num_answers=2)
    drawn = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True, beam=free)

    def search(number: int, beam: BeamSearch) -> worker_pb2.Beam:
        sampling = sampling_to_proto(msgspec.structs.replace(drawn, beam=beam))
        bench.role.submit(GENERATE, submit(1, number, sampling=sampling), bench.session)
        bench.turn(12)
        assert bench.is_empty
        answer: worker_pb2.BeamAnswer = bench.session.of("beams")[-1]
        return answer.beams[0]

    whole = search(1, free)
    assert (len(whole.tokens), whole.finish) == (8, FinishReason.LENGTH)
    [stop] = set(vocabulary.decode(whole.tokens)[2:3])
    ended = search(2, msgspec.structs.replace(free, stop=(stop,)))
    assert ended.finish == FinishReason.STOP
    read = AnswerText(vocabulary, stop=(stop,))
    read.read(ended.tokens[:-1])
    assert not read.stopped
    read.read(ended.tokens[-1:])
    assert read.stopped


async def test_a_search_by_text_with_a_damaged_tokenizer_is_refused_alone(bench: RoleBench[DecodeRole]) -> None:
    damaged = AnswerTexts(msgspec.structs.replace(bench.card, tokenizer_json="{}"))
    role = DecodeRole(replace(bench.parts, texts=damaged))
    beam = BeamSearch(width=2, num_answers=2, stop=("x",))
    sampling = sampling_to_proto(SamplingParams(max_tokens=8, temperature=0.0, beam=beam))
    role.submit(GENERATE, submit(1, sampling=sampling), bench.session)
    assert bench.session.codes == ["bad_model_file"]
    role.submit(GENERATE, submit(2), bench.session)
    assert bench.session.codes == ["bad_model_file"]
    assert [one.key for one in bench.engine.requests()] == [(2, 1)]


async def test_a_reservation_is_granted_and_cancelled_before_anything_was_fetched(bench: RoleBench[DecodeRole]) -> None:
    bench.role.submit(RESERVE, submit(), bench.session)
    bench.turn()
    [reserved] = bench.session.of("reserved")
    assert reserved.cached_tokens == 0
    bench.role.cancel((1, 1))
    bench.turn()
    assert bench.is_empty


async def test_cancelling_amid_a_fetch_frees_the_memory_only_when_it_is_quiet(bench: RoleBench[DecodeRole]) -> None:
    bench.role.submit(RESERVE, submit(), bench.session)
    bench.turn()
    bench.role.attach(attach(), bench.session)
    bench.role.cancel((1, 1))
    assert bench.engine.load().draining_blocks == 2
    await settle(bench)
    assert bench.is_empty
    assert not bench.session.codes


async def test_a_source_that_is_not_there_is_blamed_and_the_memory_comes_back(bench: RoleBench[DecodeRole]) -> None:
    bench.role.submit(RESERVE, submit(), bench.session)
    bench.turn()
    bench.role.attach(attach(), bench.session)
    await settle(bench)
    [failed] = bench.session.of("failed")
    assert failed.retryable
    assert failed.blamed_worker == "p"
    assert bench.is_empty


async def test_news_of_a_fetch_that_was_cancelled_changes_nothing(bench: RoleBench[DecodeRole]) -> None:
    bench.role.submit(RESERVE, submit(), bench.session)
    bench.turn()
    bench.role.attach(attach(), bench.session)
    bench.role.cancel((1, 1))
    bench.role._fetched((1, 1), KvFinalData((5,), 0), NO_STATS)
    await settle(bench)
    assert bench.is_empty
    assert not bench.session.tokens


@pytest.mark.parametrize("first_tokens", [(), (4_000_000,), (-1,)])
async def test_a_source_that_tells_nonsense_ends_that_request_alone(
    first_tokens: tuple[int, ...], bench: RoleBench[DecodeRole]
) -> None:
    bench.role.submit(GENERATE, submit(2), bench.session)
    bench.role.submit(RESERVE, submit(1), bench.session)
    bench.turn()
    bench.role.attach(attach(), bench.session)
    bench.role._fetched((1, 1), KvFinalData(first_tokens, 0), NO_STATS)
    bench.turn(12)
    assert [failed.request for failed in bench.session.of("failed")] == [1]
    assert len(bench.session.tokens) == 8
    bench.role.cancel((1, 1))
    await settle(bench)
    assert bench.is_empty


async def test_an_answer_that_ended_at_prefill_never_runs(bench: RoleBench[DecodeRole]) -> None:
    bench.role.submit(RESERVE, submit(), bench.session)
    bench.turn()
    bench.role.attach(attach(), bench.session)
    bench.role._fetched((1, 1), KvFinalData((5,), 0, finished=True), NO_STATS)
    bench.turn()
    assert bench.is_empty
    assert not bench.session.tokens


async def test_a_hand_off_that_cannot_start_fails_that_request_alone(
    bench: RoleBench[DecodeRole], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.role.submit(RESERVE, submit(1), bench.session)
    bench.role.submit(GENERATE, submit(2), bench.session)
    bench.turn()
    monkeypatch.setattr(bench.role._consumer, "fetch", lambda *_, **__: 1 / 0)
    bench.role.attach(attach(), bench.session)
    bench.turn(12)
    assert bench.session.codes == ["internal_error"]
    assert len(bench.session.tokens) == 8
    await settle(bench)
    assert bench.is_empty


async def test_repeated_messages_are_dropped(bench: RoleBench[DecodeRole]) -> None:
    bench.role.submit(RESERVE, submit(), bench.session)
    bench.turn()
    bench.role.submit(RESERVE, submit(), bench.session)
    bench.role.attach(attach(), bench.session)
    bench.role.attach(attach(), bench.session)
    bench.turn()
    assert len(bench.session.of("reserved")) == 1
    await settle(bench)
    assert bench.is_empty


async def test_draining_refuses_new_work_and_ends_with_the_last_request(bench: RoleBench[DecodeRole]) -> None:
    bench.role.submit(GENERATE, submit(1), bench.session)
    bench.turn()
    idle: Future[None] = Future()
    bench.role.drain(idle)
    bench.role.submit(GENERATE, submit(2), bench.session)
    bench.turn()
    assert bench.session.codes == ["draining"]
    assert not idle.done()
    bench.turn(12)
    assert idle.done()
    assert len(bench.session.tokens) == 8


async def test_a_replaced_attempt_does_not_keep_a_drain_waiting(bench: RoleBench[DecodeRole]) -> None:
    bench.role.submit(RESERVE, submit(attempt=1), bench.session)
    bench.turn()
    bench.role.submit(GENERATE, submit(attempt=2), bench.session)
    idle: Future[None] = Future()
    bench.role.drain(idle)
    bench.turn(12)
    assert idle.done()
    assert bench.is_empty
