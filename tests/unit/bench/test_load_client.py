"""The client against a real HTTP server."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import msgspec
import pytest

from splice.bench.arrivals import Arrivals, Burst, Closed
from splice.bench.connection import parse_target
from splice.bench.dialect import DIALECTS
from splice.bench.load import LoadResult, ServerAccess, model_names, run_load
from splice.bench.workload import MultiTurn, RandomPrompt, Workload
from tests.unit.bench.sse_server import (
    BREAK,
    DONE,
    END,
    HEAD,
    Piece,
    Reply,
    SseServer,
    answer,
    chunked,
    event,
    plain,
    text,
    usage,
)
from wire.errors import SpliceError

WORKLOAD = Workload(
    name="test", title="", requests=1, arrivals=Closed(1), prompt=RandomPrompt(3), output_tokens=4, token_ids=(5, 50)
)


def load(server: SseServer, workload: Workload = WORKLOAD, *, timeout_s: float = 20.0) -> LoadResult:
    access = ServerAccess(parse_target(server.url, None), "tiny", DIALECTS["vllm"])
    return run_load(workload, access, seed=(1,), timeout_s=timeout_s, text_of=lambda n, seed: " w" * n)


def error_of(reply: Sequence[Piece], *, timeout_s: float = 20.0) -> str:
    with SseServer(lambda _: reply).running() as server:
        (sample,) = load(server, timeout_s=timeout_s).samples
    assert sample.error is not None
    return sample.error


def whole_body() -> bytes:
    return b"".join(answer(4)[1:])  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_an_answer_is_the_same_however_the_bytes_are_cut(size: int) -> None:
    body = whole_body()
    pieces: list[Piece] = [HEAD]
    for start in range(0, len(body), size):
        pieces += [body[start : start + size], 0.0]
    with SseServer(lambda _: pieces).running() as server:
        (sample,) = load(server).samples
    assert sample.error is None
    assert (sample.prompt_tokens, sample.output_tokens, sample.finish) == (3, 4, "length")
    assert len(sample.gaps_us) == 3


def test_a_character_cut_between_two_reads_arrives_whole() -> None:
    raw = 'data: {"choices": [{"text": "é€", "finish_reason": "length"}]}\n\n'.encode()
    body = raw + usage(3, 4) + DONE
    cut = raw.index("€".encode()) + 1
    pieces = [HEAD, chunked(body[:cut]), 0.01, chunked(body[cut:]) + END]
    with SseServer(lambda _: pieces).running() as server:
        cut_sample = load(server).samples[0]
    with SseServer(lambda _: [HEAD, chunked(body) + END]).running() as server:
        whole_sample = load(server).samples[0]
    assert cut_sample.error is None
    assert cut_sample.text_digest == whole_sample.text_digest


def test_times_are_those_of_the_pieces() -> None:
    pieces = [HEAD, 0.05, chunked(text("a")), 0.1, chunked(text("b", "length")), chunked(usage(3, 4) + DONE) + END]
    with SseServer(lambda _: pieces).running() as server:
        (sample,) = load(server).samples
    assert sample.error is None
    assert sample.first_us is not None
    assert sample.first_us >= 50_000
    assert len(sample.gaps_us) == 1
    assert sample.gaps_us[0] >= 90_000
    assert sample.end_us >= (sample.last_us or 0)


def test_an_opening_chunk_without_text_is_no_first_token() -> None:
    opening = event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
    rest = [chunked(text("a", "length") + usage(3, 4) + DONE) + END]
    with SseServer(lambda _: [HEAD, chunked(opening), 0.1, *rest]).running() as server:
        (sample,) = load(server).samples
    assert sample.first_us is not None
    assert sample.first_us >= 90_000


def test_an_error_status_is_told_in_the_servers_words() -> None:
    body = json.dumps({"error": {"message": "no such model", "code": "model_not_found"}}).encode()
    assert error_of(plain("404 Not Found", body)) == "HTTP 404: no such model"
    assert error_of(plain("502 Bad Gateway", b"<html>")) == "HTTP 502: <html>"


def test_an_error_in_the_middle_of_a_stream_fails_the_request() -> None:
    broken = event({"error": {"message": "worker lost"}})
    assert "worker lost" in error_of([HEAD, chunked(text("a")), chunked(broken), END])


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ([HEAD, chunked(text("a")), BREAK], "broke off"),
        ([HEAD, chunked(text("a"))[:-10], BREAK], "broke off"),
        ([HEAD[:20], BREAK], "broke off"),
        ([HEAD, chunked(text("a", "length") + usage(3, 4)) + END], "end mark"),
        ([HEAD, chunked(text("a") + usage(3, 4) + DONE) + END], "finish reason"),
        ([HEAD, chunked(text("a", "length") + DONE) + END], "usage"),
        ([HEAD, chunked(text("a", "stop") + usage(3, 2) + DONE) + END], "2 tokens came, 4 were asked for"),
        ([HEAD, chunked(b"data: {nonsense\n\n") + END], "no chunk"),
        ([b"GARBAGE\r\n\r\n"], "does not speak HTTP"),
    ],
)
def test_an_incomplete_answer_is_a_failed_request(pieces: Sequence[Piece], said: str) -> None:
    assert said in error_of(pieces)


def test_a_stream_that_stalls_ends_with_the_run() -> None:
    assert "when the run's 0.3 s were over" in error_of([HEAD, chunked(text("a")), 30.0], timeout_s=0.3)


def test_what_fails_does_not_end_the_run() -> None:
    turns = itertools.cycle([answer(4), [HEAD, BREAK]])
    workload = msgspec.structs.replace(WORKLOAD, requests=6, arrivals=Closed(2))
    with SseServer(lambda _: next(turns)).running() as server:
        samples = load(server, workload).samples
    assert sorted(sample.index for sample in samples) == list(range(6))
    assert sum(sample.error is None for sample in samples) == 3


def test_nobody_at_the_address_is_one_clear_error() -> None:
    with SseServer(lambda _: answer(4)).running() as server:
        pass
    with pytest.raises(SpliceError, match=r"nothing answers at 127\.0\.0\.1"):
        load(server)


def test_a_closed_loop_keeps_its_streams_and_their_connections() -> None:
    slow = [*answer(4)[:-1], 0.02, answer(4)[-1]]
    workload = msgspec.structs.replace(WORKLOAD, requests=12, arrivals=Closed(3))
    with SseServer(lambda _: slow).running() as server:
        samples = load(server, workload).samples
        assert server.connections <= 4  # three streams, and the look before
    at_once = max(
        sum(other.due_us <= sample.due_us < other.due_us + other.end_us for other in samples) for sample in samples
    )
    assert at_once == 3


def test_a_connection_the_server_closed_between_requests_is_replaced() -> None:
    closing: Reply = lambda _: [*answer(4), BREAK]  # noqa: E731
    workload = msgspec.structs.replace(WORKLOAD, requests=4)
    with SseServer(closing).running() as server:
        samples = load(server, workload).samples
    assert [sample.error for sample in samples] == [None] * 4


def test_an_open_loop_sends_when_due_and_not_when_the_server_is_free() -> None:
    slow: list[Piece] = [0.3, *answer(4)]
    arrivals: Arrivals = Burst(size=2, every_s=0.05)
    workload = msgspec.structs.replace(WORKLOAD, requests=4, arrivals=arrivals)
    with SseServer(lambda _: slow).running() as server:
        samples = load(server, workload).samples
    assert [sample.due_us for sample in samples] == [0, 0, 50_000, 50_000]
    assert all(sample.due_us + sample.sent_us < 300_000 for sample in samples)


def test_prompts_are_exact_and_the_same_for_every_server() -> None:
    workload = msgspec.structs.replace(WORKLOAD, requests=3)
    seen = []
    for _ in range(2):
        with SseServer(lambda _: answer(4)).running() as server:
            load(server, workload)
            seen.append(server.bodies)
    assert seen[0] == seen[1]
    prompts = [body["prompt"] for body in seen[0]]
    assert all(isinstance(prompt, list) and len(prompt) == 3 for prompt in prompts)
    assert len({tuple(prompt) for prompt in prompts}) == 3  # type: ignore[arg-type]
    assert seen[0][0] | {"prompt": []} == {
        "model": "tiny",
        "prompt": [],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 4,
        "min_tokens": 4,
        "temperature": 0.0,
        "ignore_eos": True,
    }


def test_a_conversation_carries_the_answers_it_got() -> None:
    workload = msgspec.structs.replace(WORKLOAD, form="chat", prompt=MultiTurn(tokens=2, turns=3))

    def reply(body: dict[str, object]) -> list[Piece]:
        number = len(body["messages"])  # type: ignore[arg-type]
        delta = event({"choices": [{"delta": {"content": f"answer {number}"}, "finish_reason": "length"}]})
        return [HEAD, chunked(delta + usage(3, 4) + DONE) + END]

    with SseServer(reply).running() as server:
        samples = load(server, workload).samples
        assert server.paths == ["/v1/chat/completions"] * 3
        last = server.bodies[-1]["messages"]
    assert [sample.error for sample in samples] == [None] * 3
    assert [message["content"] for message in last] == [" w w", "answer 1", " w w", "answer 3", " w w"]  # type: ignore[attr-defined]


def test_a_workload_beside_goes_on_with_new_prompts_until_the_measured_one_has_ended() -> None:
    other = msgspec.structs.replace(WORKLOAD, name="other", requests=2, prompt=RandomPrompt(7), arrivals=Closed(2))
    workload = msgspec.structs.replace(WORKLOAD, requests=3, beside=other)

    def reply(body: dict[str, object]) -> list[Piece]:
        return [0.2 if len(body["prompt"]) == 3 else 0.02, *answer(4)]  # type: ignore[arg-type]

    with SseServer(reply).running() as server:
        result = load(server, workload)
        prompts = [tuple(body["prompt"]) for body in server.bodies]  # type: ignore[arg-type]
    assert [sample.error for sample in result.samples] == [None] * 3
    assert len(result.beside) > 2 * 2
    assert {sample.error for sample in result.beside} == {None}
    assert len(set(prompts)) == len(prompts)


def test_the_served_models_are_asked_for() -> None:
    with SseServer(lambda _: answer(4)).running() as server:
        assert model_names(parse_target(server.url + "/v1", None)) == ["tiny"]


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", "http://host:notaport"])
def test_an_address_that_cannot_be_is_refused(url: str) -> None:
    with pytest.raises(SpliceError, match="is no address"):
        parse_target(url, None)
