"""Bad input over real HTTP: each gets its code and names its field, and the server goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from router_cluster import Cluster, running_cluster
from router_toy_model import toy_card

from router.requested import Requested, complete, read_sampling
from wire.errors import ErrorCode, SpliceError

GOOD: dict[str, Any] = {"model": "toy", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
PLAIN: dict[str, Any] = {"model": "toy", "prompt": "hi", "max_tokens": 2}


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with running_cluster(("d0",), body_timeout_s=0.3) as running:
        yield running


async def still_works(http: httpx.AsyncClient) -> None:
    assert (await http.post("/v1/chat/completions", json=GOOD)).status_code == 200


def the_error(response: httpx.Response) -> tuple[int, str, str | None]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert response.headers["x-request-id"]
    assert response.headers["x-should-retry"] == "false"
    return response.status_code, error["code"], error["param"]


BEAM: dict[str, Any] = {"use_beam_search": True, "beam_width": 4}
BAD_CHAT: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": []}, "invalid_request", "messages"),
    ({"messages": "hi"}, "invalid_request", "messages"),
    ({"messages": None}, "invalid_request", "messages"),
    ({"messages": [1]}, "invalid_request", "messages[0]"),
    ({"messages": [{"role": "king", "content": "x"}]}, "invalid_request", "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "invalid_request", "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "invalid_request", "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": "x", "tool_calls": []}]},
        "unsupported_parameter",
        "messages[0].tool_calls",
    ),
    ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "unknown_field", "messages[0].colour"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "unsupported_parameter",
        "messages[0].content[0].type",
    ),
    ({"messages": [{"role": "tool", "content": "x"}]}, "invalid_request", "messages"),
    ({"messages": [{"role": "user", "content": "x"}] * 4097}, "invalid_request", "messages"),
    ({"messages": [{"role": "user", "content": "fox " * 6000}]}, "context_length_exceeded", "messages"),
    ({"model": 3}, "invalid_request", "model"),
    ({"model": ""}, "invalid_request", "model"),
    ({"max_tokens": 0}, "invalid_request", "max_tokens"),
    ({"max_tokens": -1}, "invalid_request", "max_tokens"),
    ({"max_tokens": 1.5}, "invalid_request", "max_tokens"),
    ({"max_tokens": "5"}, "invalid_request", "max_tokens"),
    ({"max_tokens": True}, "invalid_request", "max_tokens"),
    ({"max_tokens": 4097}, "context_length_exceeded", "max_tokens"),
    ({"max_completion_tokens": -3}, "invalid_request", "max_completion_tokens"),
    ({"min_tokens": 3}, "invalid_request", "min_tokens"),
    ({"temperature": -0.1}, "invalid_request", "temperature"),
    ({"temperature": 2.1}, "invalid_request", "temperature"),
    ({"temperature": "hot"}, "invalid_request", "temperature"),
    ({"temperature": True}, "invalid_request", "temperature"),
    ({"temperature": []}, "invalid_request", "temperature"),
    ({"top_p": 0}, "invalid_request", "top_p"),
    ({"top_p": 1.01}, "invalid_request", "top_p"),
    ({"top_k": -2}, "invalid_request", "top_k"),
    ({"min_p": 1.5}, "invalid_request", "min_p"),
    ({"frequency_penalty": 2.5}, "invalid_request", "frequency_penalty"),
    ({"presence_penalty": -2.5}, "invalid_request", "presence_penalty"),
    ({"repetition_penalty": 0}, "invalid_request", "repetition_penalty"),
    ({"n": 0}, "invalid_request", "n"),
    ({"n": 17}, "invalid_request", "n"),
    ({"seed": 2**64}, "invalid_request", "seed"),
    ({"seed": "lucky"}, "invalid_request", "seed"),
    ({"stop": ""}, "invalid_request", "stop"),
    ({"stop": ["x"] * 17}, "invalid_request", "stop"),
    ({"stop": "x" * 257}, "invalid_request", "stop"),
    ({"stop": [1]}, "invalid_request", "stop"),
    ({"stop_token_ids": [-1]}, "invalid_request", "stop_token_ids"),
    ({"logit_bias": {"999999": 1}}, "invalid_request", "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "invalid_request", "logit_bias"),
    ({"logit_bias": {"5": 101}}, "invalid_request", "logit_bias"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "invalid_request", "logit_bias"),
    ({"logit_bias": [1]}, "invalid_request", "logit_bias"),
    ({"logprobs": 3}, "invalid_request", "logprobs"),
    ({"top_logprobs": 3}, "invalid_request", "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "invalid_request", "top_logprobs"),
    ({"typical_p": 0}, "invalid_request", "typical_p"),
    ({"typical_p": 1.5}, "invalid_request", "typical_p"),
    ({"allowed_token_ids": []}, "invalid_request", "allowed_token_ids"),
    ({"allowed_token_ids": [10**6]}, "invalid_request", "allowed_token_ids"),
    ({"allowed_token_ids": [1] * 8193}, "invalid_request", "allowed_token_ids"),
    ({"bad_words": "fox"}, "invalid_request", "bad_words"),
    ({"bad_words": ["  "]}, "invalid_request", "bad_words"),
    ({"bad_words": ["x"] * 129}, "invalid_request", "bad_words"),
    ({"bad_words_ids": [[]]}, "invalid_request", "bad_words_ids[0]"),
    ({"bad_words_ids": [[10**6]]}, "invalid_request", "bad_words_ids[0]"),
    ({"prompt_logprobs": 21}, "invalid_request", "prompt_logprobs"),
    ({"prompt_logprobs": 1, "stream": True}, "invalid_request", "prompt_logprobs"),
    ({"best_of": 17}, "invalid_request", "best_of"),
    ({"best_of": 2, "n": 3}, "invalid_request", "best_of"),
    ({"best_of": 2, "stream": True}, "invalid_request", "best_of"),
    ({"use_beam_search": 1}, "invalid_request", "use_beam_search"),
    ({"beam_width": 4}, "invalid_request", "beam_width"),
    ({"length_penalty": 0.5}, "invalid_request", "length_penalty"),
    ({"early_stopping": True}, "invalid_request", "early_stopping"),
    ({**BEAM, "beam_width": 17}, "invalid_request", "beam_width"),
    ({**BEAM, "n": 5}, "invalid_request", "beam_width"),
    ({**BEAM, "length_penalty": 11}, "invalid_request", "length_penalty"),
    ({**BEAM, "early_stopping": "soon"}, "invalid_request", "early_stopping"),
    ({**BEAM, "temperature": 0.5}, "invalid_request", "temperature"),
    ({**BEAM, "top_k": 5}, "invalid_request", "top_k"),
    ({**BEAM, "repetition_penalty": 1.1}, "invalid_request", "repetition_penalty"),
    ({**BEAM, "bad_words": ["fox"]}, "invalid_request", "bad_words"),
    ({**BEAM, "stop": [""]}, "invalid_request", "stop"),
    ({**BEAM, "skip_special_tokens": 1}, "invalid_request", "skip_special_tokens"),
    ({**BEAM, "best_of": 4}, "invalid_request", "best_of"),
    ({"stream": "yes"}, "invalid_request", "stream"),
    ({"stream_options": {"include_usage": True}}, "invalid_request", "stream_options"),
    ({"stream": True, "stream_options": {"usage": True}}, "unknown_field", "stream_options.usage"),
    ({"tools": [{"type": "function"}]}, "unsupported_parameter", "tools"),
    ({"response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format"),
    ({"temprature": 1}, "unknown_field", "temprature"),
]
BAD_COMPLETIONS: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": None}, "invalid_request", "prompt"),
    ({"prompt": ""}, "invalid_request", "prompt"),
    ({"prompt": []}, "invalid_request", "prompt"),
    ({"prompt": {"text": "x"}}, "invalid_request", "prompt"),
    ({"prompt": [1, "x"]}, "invalid_request", "prompt"),
    ({"prompt": [1, 10**9]}, "invalid_request", "prompt"),
    ({"prompt": [True]}, "invalid_request", "prompt"),
    ({"prompt": ["x", [1]]}, "invalid_request", "prompt[0]"),
    ({"prompt": ["x"] * 65}, "invalid_request", "prompt"),
    ({"prompt": ["x"] * 20, "n": 16}, "invalid_request", "n"),
    ({"prompt": [5] * 5000}, "context_length_exceeded", "prompt"),
    ({"echo": 1}, "invalid_request", "echo"),
    ({"echo": True, "logprobs": 1, "stream": True}, "invalid_request", "echo"),
    ({"max_tokens": 0}, "invalid_request", "max_tokens"),
    ({"prompt": ["x"] * 20, "best_of": 16}, "invalid_request", "n"),
    ({"logprobs": 21}, "invalid_request", "logprobs"),
    ({"messages": []}, "unknown_field", "messages"),
]


async def test_every_bad_field_is_named(cluster: Cluster) -> None:
    async with cluster.http() as http:
        for path, good, cases in (
            ("/v1/chat/completions", GOOD, BAD_CHAT),
            ("/v1/completions", PLAIN, BAD_COMPLETIONS),
        ):
            for change, code, param in cases:
                response = await http.post(path, json={**good, **change})
                assert the_error(response) == (400, code, param), (change, response.text)
        await still_works(http)
    assert len(cluster["d0"].seen.generates) == 1, "a refused request reached a worker"


async def test_an_unknown_field_gets_a_suggestion(cluster: Cluster) -> None:
    async with cluster.http() as http:
        response = await http.post("/v1/chat/completions", json={**GOOD, "temprature": 1})
    assert "did you mean 'temperature'" in response.json()["error"]["message"]


BAD_BODIES = [
    b"",
    b"   ",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b'{"model": "toy", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
    b'{"model": "toy", "temperature": NaN}',
    b'{"model": "toy", "temperature": Infinity}',
    b'{"model": "toy", "messages": [{"role": "user", "content": "\\ud83e"}]}',
    b'{"model": ' + b"[" * 100 + b"]" * 100 + b"}",
    b'{"model": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"model": "toy", "seed": ' + b"9" * 5000 + b"}",
]


async def test_a_body_that_is_not_one_json_object_is_refused(cluster: Cluster) -> None:
    async with cluster.http() as http:
        for body in BAD_BODIES:
            response = await http.post("/v1/chat/completions", content=body)
            assert the_error(response)[:2] == (400, "invalid_request"), body[:40]
        await still_works(http)


async def test_numbers_too_large_for_floats_are_refused(cluster: Cluster) -> None:
    async with cluster.http() as http:
        body = json.dumps(GOOD)[:-1].encode() + b', "temperature": 1e999}'
        assert the_error(await http.post("/v1/chat/completions", content=body))[0] == 400


async def test_unknown_models_and_paths_and_methods(cluster: Cluster) -> None:
    async with cluster.http() as http:
        missing = await http.post("/v1/chat/completions", json={**GOOD, "model": "gpt"})
        assert the_error(missing) == (404, "model_not_found", "model")
        assert "toy" in missing.json()["error"]["message"]
        assert the_error(await http.get("/v1/models/gpt")) == (404, "model_not_found", "model")
        assert the_error(await http.get("/nowhere")) == (404, "not_found", None)
        assert the_error(await http.get("/v1/chat/completions")) == (405, "method_not_allowed", None)
        assert the_error(await http.put("/v1/models")) == (405, "method_not_allowed", None)
        assert the_error(await http.post("/v1/chat/completions/")) == (404, "not_found", None)
        await still_works(http)


async def test_bodies_beyond_the_limit_are_refused_declared_or_not(cluster: Cluster) -> None:
    big = b'{"model": "' + b"x" * (8 * 2**20) + b'"}'

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(big), 2**20):
            yield big[start : start + 2**20]

    async with cluster.http() as http:
        for content in (big, pieces()):
            response = await http.post("/v1/chat/completions", content=content)
            assert the_error(response) == (413, "request_too_large", None)
        await still_works(http)


async def raw(cluster: Cluster, data: bytes, *, finish: bool = False) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", cluster.ports.http)
    try:
        writer.write(data)
        if finish:
            writer.write_eof()
        return await asyncio.wait_for(reader.read(), 5)
    except ConnectionResetError:
        return b""  # the server hung up on us, which is an answer too
    finally:
        writer.close()


async def test_half_sent_bodies_end_and_harm_nobody(cluster: Cluster) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 500\r\n\r\n"
    slow = await raw(cluster, head + b'{"model": "to')
    assert slow.startswith(b"HTTP/1.1 400")
    assert b"did not arrive" in slow
    await raw(cluster, head + b'{"model": "to', finish=True)
    assert (await raw(cluster, b"\x00\x01\x02 nonsense\r\n\r\n")).startswith(b"HTTP/1.1 400")
    await raw(cluster, b"GET /health HTTP/1.1\r\nX: " + b"y" * 200_000, finish=True)
    async with cluster.http() as http:
        await still_works(http)


async def test_harmless_and_neutral_fields_are_accepted(cluster: Cluster) -> None:
    extra = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
        "tools": None,
        "response_format": {"type": "text"},
        "logit_bias": {"5": -100},
        "stop": None,
        "top_k": -1,
        "seed": -1,
    }
    async with cluster.http() as http:
        response = await http.post("/v1/chat/completions", json={**GOOD, **extra})
    assert response.status_code == 200, response.text
    assert cluster["d0"].seen.generates[0].sampling.seed == 2**64 - 1


async def test_keys_are_asked_for_everywhere_but_on_the_open_paths() -> None:
    async with running_cluster(("d0",), api_keys=("right", "other")) as cluster, cluster.http() as http:
        for path in ("/health", "/ready", "/metrics"):
            assert (await http.get(path)).status_code == 200
        for path in ("/v1/models", "/v1/models/toy", "/nowhere", "//health", "/health/", "/v1/chat/completions"):
            response = await http.get(path)
            assert the_error(response)[:2] == (401, "invalid_api_key"), path
        for value in ("right", "Bearer wrong", "Bearer right2", "Basic right", "Bearer"):
            assert (await http.get("/v1/models", headers={"authorization": value})).status_code == 401
        for key in ("right", "other"):
            assert (await http.get("/v1/models", headers={"authorization": f"Bearer {key}"})).status_code == 200


def test_completing_draws_only_a_missing_seed_and_fills_the_context() -> None:
    def ask(**body: Any) -> Requested:
        return read_sampling(body, toy_card(), logprobs=None)

    def finish(requested: Requested, tokens: int = 10) -> Any:
        return complete(requested, toy_card(), tokens, limit=100, draw_seed=lambda: 77, where="prompt")

    assert finish(ask()).seed == 77
    assert finish(ask(seed=0)).seed == 0
    assert finish(ask()).max_tokens == 90
    assert finish(ask(max_tokens=90)).max_tokens == 90
    for requested, tokens in ((ask(max_tokens=91), 10), (ask(), 100)):
        with pytest.raises(SpliceError) as caught:
            finish(requested, tokens)
        assert caught.value.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
