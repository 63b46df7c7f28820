"""Tokens come over a stream of their own where there is one; without it, or when it breaks, no token is lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from router_cluster import Cluster, running_cluster, until
from router_toy_model import byte_level_tokenizer, reference, toy_card
from scripted_worker import ScriptedWorker, Tokens

from router.token_stream import TokenStream
from wire.framing import framed
from wire.sampling import SamplingParams

PROMPT = list(range(10, 60))
N = 40


def expected() -> str:
    tokens, _ = reference(PROMPT, SamplingParams(max_tokens=N, seed=5), toy_card())
    return byte_level_tokenizer().decode(tokens)


async def complete(cluster: Cluster) -> dict[str, Any]:
    body = {"model": "toy", "prompt": PROMPT, "max_tokens": N, "seed": 5}
    async with cluster.http() as http:
        answer = await http.post("/v1/completions", json=body, headers={"x-splice-receipt": "1"})
    whole: dict[str, Any] = answer.json()
    return whole


def text(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["text"])


async def test_a_stream_that_is_offered_is_used() -> None:
    async with running_cluster() as cluster:
        assert [len(worker.token_streams) for worker in cluster.workers.values()] == [1, 1]
        assert text(await complete(cluster)) == expected()


@pytest.mark.parametrize("tokens", ["none", "unreachable", "refused"])
async def test_without_a_stream_the_session_does_for_both_directions(tokens: Tokens) -> None:
    async with running_cluster(tokens=tokens) as cluster:
        answer = await complete(cluster)
        assert not any(worker.token_streams for worker in cluster.workers.values())
    assert text(answer) == expected()
    assert answer["splice_receipt"]["attempts"] == 1


async def break_off(worker: ScriptedWorker) -> None:
    [stream] = worker.token_streams.values()
    stream.transport.abort()


async def send_nonsense(worker: ScriptedWorker) -> None:
    [stream] = worker.token_streams.values()
    stream.write(framed(b"\xff" * 40))


async def announce_too_much(worker: ScriptedWorker) -> None:
    [stream] = worker.token_streams.values()
    stream.write(b"\xff\xff\xff\xff")


@pytest.mark.parametrize("harm", [break_off, send_nonsense, announce_too_much])
async def test_a_stream_that_breaks_ends_the_session_and_the_answer_goes_on_elsewhere(harm: Any) -> None:
    async with running_cluster(("d0", "d1")) as cluster:
        for worker in cluster.workers.values():
            worker.script.step_s = 0.005

        async def harm_the_owner() -> None:
            await until(lambda: any(worker.progress > 5 for worker in cluster.workers.values()))
            await harm(cluster["d0"] if cluster["d0"].jobs else cluster["d1"])

        _, answer = await asyncio.gather(harm_the_owner(), complete(cluster))
        assert text(answer) == expected()
        assert answer["splice_receipt"]["attempts"] == 2
        await until(lambda: all(worker.token_streams for worker in cluster.workers.values()))


async def test_what_was_written_before_the_end_is_heard_out() -> None:
    """The last token and the end of the session travel apart: here the end comes first by far."""
    async with running_cluster(("d0",)) as cluster:
        worker = cluster["d0"]
        worker.script.step_s = 0.002
        [ticket] = worker.token_streams
        stream = Late(worker.token_streams[ticket])
        worker.token_streams[ticket] = stream  # type: ignore[assignment]
        waiting = asyncio.create_task(complete(cluster))
        await until(lambda: worker.progress == N)
        await worker.stop()
        await asyncio.sleep(0.2)
        stream.deliver()
        answer = await waiting
    assert text(answer) == expected()
    assert answer["splice_receipt"]["attempts"] == 1


class Late:
    """A stream whose bytes are held up on their way."""

    def __init__(self, stream: asyncio.StreamWriter) -> None:
        self._stream, self._held = stream, b""

    def write(self, data: bytes) -> None:
        self._held += data

    def close(self) -> None:
        """The end is held up like the rest."""

    def deliver(self) -> None:
        self._stream.write(self._held)
        self._stream.close()


async def test_nothing_is_handed_on_after_a_stream_was_closed() -> None:
    heard: list[bytes] = []
    ends: list[Exception | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(2) == b"ab"
        writer.write(b"".join(framed(bytes([number])) for number in range(9)))

    def hear(message: bytes) -> None:
        heard.append(message)
        if len(heard) == 3:
            stream.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        stream = TokenStream(b"ab", hear, ends.append)
        await asyncio.get_running_loop().create_connection(lambda: stream, "127.0.0.1", port)
        await stream.hear_out(5.0)
        await asyncio.sleep(0)
    assert heard == [b"\0", b"\1", b"\2"]
    assert ends == []
