"""Workers die, hang, refuse and lie; clients leave. Tokens stay exact and every request has one end."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest
from router_cluster import Cluster, running_cluster, until, until_connected, until_true
from router_toy_model import byte_level_tokenizer, reference, toy_card
from scripted_worker import ScriptedWorker

from wire.sampling import SamplingParams
from wire.v1 import worker_pb2

PROMPT = list(range(10, 60))
N = 40


def expected(seed: int = 5, n: int = N) -> str:
    tokens, _ = reference(PROMPT, SamplingParams(max_tokens=n, seed=seed), toy_card())
    return byte_level_tokenizer().decode(tokens)


async def complete(cluster: Cluster, **more: Any) -> dict[str, Any]:
    """Streams one completion; returns text, finish, receipt, error, done."""
    body = {"model": "toy", "prompt": PROMPT, "max_tokens": N, "seed": 5, "stream": True, **more}
    out: dict[str, Any] = {"text": "", "finish": [], "error": None, "done": False, "receipt": {}}
    async with (
        cluster.http() as http,
        http.stream("POST", "/v1/completions", json=body, headers={"x-splice-receipt": "1"}) as response,
    ):
        out["status"] = response.status_code
        if response.status_code != 200:
            out["error"] = json.loads(await response.aread())["error"]
            return out
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                out["done"] = True
            elif line:
                chunk = json.loads(line[6:])
                out["error"] = chunk.get("error", out["error"])
                out["receipt"] = chunk.get("splice_receipt", out["receipt"])
                for choice in chunk.get("choices", ()):
                    out["text"] += choice["text"]
                    out["finish"] += [choice["finish_reason"]] if choice["finish_reason"] else []
    return out


@pytest.mark.parametrize("seq", [1, 2, 17, N - 1])
async def test_killing_decode_midstream_repeats_no_token(seq: int) -> None:
    async with running_cluster(("p0", "d0", "d1")) as cluster:
        for worker_id in ("d0", "d1"):
            cluster[worker_id].script.step_s = 0.001

        async def kill_the_owner() -> None:
            await until(lambda: bool(cluster["d0"].jobs or cluster["d1"].jobs))
            owner = cluster["d0"] if cluster["d0"].jobs else cluster["d1"]
            owner.script.die_at_seq = seq

        _, answer = await asyncio.gather(kill_the_owner(), complete(cluster))
    assert answer["text"] == expected()
    assert answer["finish"] == ["length"]
    assert answer["done"]
    assert answer["receipt"]["attempts"] == 2


async def test_killing_prefill_before_its_token_starts_over_on_another() -> None:
    async with running_cluster(("p0", "p1", "d0")) as cluster:
        for worker_id in ("p0", "p1"):
            cluster[worker_id].script.step_s = 0.2

        async def kill_the_owner() -> None:
            await until(lambda: bool(cluster["p0"].jobs or cluster["p1"].jobs))
            await (cluster["p0"] if cluster["p0"].jobs else cluster["p1"]).stop()

        _, answer = await asyncio.gather(kill_the_owner(), complete(cluster))
    assert answer["text"] == expected()
    assert answer["receipt"]["attempts"] == 2
    assert answer["receipt"]["prefill_worker"] in ("p0", "p1")


async def test_without_prefill_workers_decode_computes_the_prompt() -> None:
    async with running_cluster(("d0",)) as cluster:
        answer = await complete(cluster)
    assert answer["text"] == expected()
    assert answer["receipt"]["prefill_worker"] == ""
    assert answer["receipt"]["kv_bytes"] == 0


async def test_a_broken_transfer_falls_back_and_the_text_is_the_same() -> None:
    async with running_cluster() as cluster:
        cluster["d0"].script.transfer_fails = True
        answer = await complete(cluster)
    assert answer["text"] == expected()
    assert answer["receipt"]["attempts"] == 2
    assert answer["receipt"]["prefill_worker"] == ""


async def test_a_silent_worker_counts_as_lost() -> None:
    async with running_cluster(("d0", "d1"), heartbeat_timeout_s=0.4) as cluster:
        for worker in cluster.workers.values():
            worker.script.step_s = 0.01

        async def silence_the_owner() -> None:
            await until(lambda: bool(cluster["d0"].jobs or cluster["d1"].jobs))
            (cluster["d0"] if cluster["d0"].jobs else cluster["d1"]).script.silent = True

        _, answer = await asyncio.gather(silence_the_owner(), complete(cluster))
    assert answer["text"] == expected()
    assert answer["receipt"]["attempts"] == 2


async def test_a_worker_that_says_its_engine_hangs_loses_its_requests_and_gets_none_until_it_goes_on() -> None:
    async with running_cluster(("d0", "d1")) as cluster:
        for worker in cluster.workers.values():
            worker.script.step_s = 0.01
        hung: list[ScriptedWorker] = []

        async def hang_the_owner() -> None:
            await until(lambda: bool(cluster["d0"].jobs or cluster["d1"].jobs))
            hung.append(cluster["d0"] if cluster["d0"].jobs else cluster["d1"])
            hung[0].script.hung = True

        _, answer = await asyncio.gather(hang_the_owner(), complete(cluster))
        assert answer["text"] == expected()
        assert answer["receipt"]["attempts"] == 2
        [owner] = hung
        await until(lambda: owner.seen.sessions > 1)  # its stream is open again, and nothing is sent over it
        before = len(owner.seen.generates)
        for seed in range(4):
            assert (await complete(cluster, seed=seed))["receipt"]["attempts"] == 1
        assert len(owner.seen.generates) == before
        owner.script.hung = False
        await until_connected(cluster)


async def test_a_worker_that_is_busy_and_gets_nowhere_loses_its_requests() -> None:
    async with running_cluster(("d0", "d1"), stall_timeout_s=0.4) as cluster:
        for worker in cluster.workers.values():
            worker.script.step_s = 0.01

        async def stick_the_owner() -> None:
            await until(lambda: bool(cluster["d0"].jobs or cluster["d1"].jobs))
            (cluster["d0"] if cluster["d0"].jobs else cluster["d1"]).script.stuck = True

        _, answer = await asyncio.gather(stick_the_owner(), complete(cluster))
    assert answer["text"] == expected()
    assert answer["receipt"]["attempts"] == 2


async def test_metrics_show_what_workers_preempted_and_swapped_and_forget_those_that_left() -> None:
    async with running_cluster(("d0", "d1")) as cluster, cluster.http() as http:
        await until_true(lambda: _shows(http, 'splice:worker_swapped_blocks{direction="out",worker="d1"} 20.0'))
        metrics = (await http.get("/metrics")).text
        assert 'splice:worker_swapped_blocks{direction="in",worker="d0"} 10.0' in metrics
        assert 'splice:worker_preemptions{worker="d0"} 3.0' in metrics
        assert "tactic" not in "".join(line for line in metrics.splitlines() if "worker=" in line)
        await cluster["d1"].stop()
        await until_connected(cluster, 1)
        metrics = (await http.get("/metrics")).text
        assert 'worker="d0"' in metrics
        assert 'worker="d1"' not in metrics


async def test_metrics_show_what_workers_that_tune_looked_up_in_vain_and_left_out() -> None:
    async with running_cluster(("d0", "d1")) as cluster, cluster.http() as http:
        cluster["d1"].script.tactics = worker_pb2.TacticCounts(hits=40, misses=2, skipped=1)
        await until_true(lambda: _shows(http, 'splice:worker_tactic_lookups{result="hit",worker="d1"} 40.0'))
        metrics = (await http.get("/metrics")).text
        assert 'splice:worker_tactic_lookups{result="miss",worker="d1"} 2.0' in metrics
        assert 'splice:worker_tactics_skipped{worker="d1"} 1.0' in metrics
        assert 'splice:worker_tactic_lookups{result="hit",worker="d0"}' not in metrics


async def _shows(http: httpx.AsyncClient, line: str) -> bool:
    return line in (await http.get("/metrics")).text


async def test_a_worker_whose_steps_are_predicted_to_be_long_is_given_the_time() -> None:
    async with running_cluster(("d0", "d1"), stall_timeout_s=0.2) as cluster:
        for worker in cluster.workers.values():
            worker.script.stuck, worker.script.expected_step_s = True, 60.0

        async def go_on() -> None:
            await until(lambda: bool(cluster["d0"].jobs or cluster["d1"].jobs))
            await asyncio.sleep(1.0)
            for worker in cluster.workers.values():
                worker.script.stuck = False

        _, answer = await asyncio.gather(go_on(), complete(cluster))
    assert answer["text"] == expected()
    assert answer["receipt"]["attempts"] == 1


async def test_no_decode_worker_is_a_clear_error_before_and_after_the_first_byte() -> None:
    async with running_cluster(("p0", "d0")) as cluster:
        cluster["d0"].script.step_s = 0.001
        cluster["d0"].script.die_at_seq = 10
        cut = await complete(cluster)
        assert cut["status"] == 200
        assert cut["error"]["code"] == "no_decode_workers"
        assert not cut["done"]
        assert cut["finish"] == []
        assert expected().startswith(cut["text"].rstrip("\ufffd"))
        refused = await complete(cluster)
        assert refused["status"] == 503
        assert refused["error"]["code"] == "no_decode_workers"
        with pytest.raises(openai.InternalServerError) as caught:
            await cluster.client().completions.create(model="toy", prompt="x")
        assert caught.value.response.headers["retry-after"] == "1"
        assert caught.value.response.headers["x-should-retry"] == "true"


async def test_a_worker_that_comes_within_the_grace_is_used() -> None:
    async with running_cluster(("d0",), no_worker_grace_s=15.0) as cluster:
        await cluster["d0"].stop()
        # A request sent over the broken stream before its end is noticed would not go to this incarnation again.
        await until_connected(cluster, 0)
        waiting = asyncio.create_task(complete(cluster))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await cluster["d0"].start()
        assert (await waiting)["text"] == expected()


async def test_refused_requests_go_elsewhere_and_if_all_refuse_the_client_hears_it() -> None:
    async with running_cluster(("d0", "d1")) as cluster:
        cluster["d0"].script.refuse = "overloaded"
        for seed in range(4):
            assert (await complete(cluster, seed=seed))["text"] == expected(seed)
        cluster["d1"].script.refuse = "overloaded"
        answer = await complete(cluster)
    assert (answer["status"], answer["error"]["code"]) == (503, "overloaded")


async def test_an_error_every_worker_would_repeat_is_not_retried() -> None:
    async with running_cluster(("d0", "d1")) as cluster:
        for worker in cluster.workers.values():
            worker.script.fail_hard = "invalid_request"
        answer = await complete(cluster)
        assert (answer["status"], answer["error"]["code"]) == (400, "invalid_request")
        assert sum(len(worker.seen.generates) for worker in cluster.workers.values()) == 1


async def test_a_request_that_kills_two_workers_is_quarantined() -> None:
    async with running_cluster(("d0", "d1", "d2")) as cluster:
        for worker in cluster.workers.values():
            worker.script.die_at_seq = 3
        answer = await complete(cluster)
        assert answer["error"]["code"] == "internal_error"
        assert "quarantined" in answer["error"]["message"]
        assert sum(bool(worker.seen.generates) for worker in cluster.workers.values()) == 2


async def test_an_address_that_answers_as_another_incarnation_gets_no_work() -> None:
    async with running_cluster(("d0", "d1")) as cluster:
        cluster["d1"].script.wrong_incarnation = True
        await asyncio.sleep(0.1)
        for seed in range(3):
            assert (await complete(cluster, seed=seed))["text"] == expected(seed)
        assert len(cluster["d0"].seen.generates) == 3


async def test_workers_with_other_arithmetic_never_pair() -> None:
    async with running_cluster(("p0", "d0"), numerics={"p0": "other"}) as cluster, cluster.http() as http:
        answer = await complete(cluster)
        assert answer["text"] == expected()
        assert answer["receipt"]["prefill_worker"] == ""
        assert (await http.get("/ready")).json()["reason"] == "no_compatible_pair"


async def test_an_answer_is_never_continued_with_other_arithmetic() -> None:
    async with running_cluster(("d0", "d1"), numerics={"d0": "a", "d1": "b"}) as cluster:
        for worker in cluster.workers.values():
            worker.script.step_s = 0.001
            worker.script.die_at_seq = 5
        answer = await complete(cluster)
    assert answer["error"]["code"] == "no_compatible_pair"


async def test_prompts_nearly_cached_on_decode_are_computed_there() -> None:
    async with running_cluster(max_local_prefill_tokens=20) as cluster:
        cluster["d0"].script.cached_tokens = 32
        answer = await complete(cluster)
        assert answer["text"] == expected()
        assert answer["receipt"]["prefill_worker"] == ""
        assert answer["receipt"]["attempts"] == 1
        assert cluster["p0"].seen.prefills == []
        assert len(cluster["d0"].seen.reserves) == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_cancels_the_work(stream: bool) -> None:
    async with running_cluster() as cluster:
        cluster["d0"].script.step_s = 0.01
        body = {"model": "toy", "prompt": PROMPT, "max_tokens": 3000, "stream": stream}

        async def ask() -> None:
            async with cluster.http() as http, http.stream("POST", "/v1/completions", json=body) as response:
                await response.aread()

        asking = asyncio.create_task(ask())
        await until(lambda: cluster["d0"].progress > 3)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: not cluster["d0"].jobs)
        assert cluster["d0"].progress < 2000
        await until_metric(cluster, "splice:client_disconnects_total 1.0")
        await until_metric(cluster, 'splice:num_requests_running{model_name="toy"} 0.0')


async def until_metric(cluster: Cluster, line: str) -> None:
    async with cluster.http() as http, asyncio.timeout(5):
        while line not in (await http.get("/metrics")).text:  # noqa: ASYNC110 - metrics are polled
            await asyncio.sleep(0.02)


async def test_the_deadline_ends_a_request_and_its_work() -> None:
    async with running_cluster(("d0",), request_timeout_s=0.4) as cluster:
        cluster["d0"].script.step_s = 0.05
        answer = await complete(cluster)
        assert answer["error"]["code"] == "deadline_exceeded"
        assert not answer["done"]
        cluster["d0"].script.step_s = 5.0
        with pytest.raises(openai.InternalServerError) as caught:
            await cluster.client().completions.create(model="toy", prompt=PROMPT, max_tokens=30)
        assert caught.value.status_code == 504
        await until(lambda: not cluster["d0"].jobs)


async def test_load_beyond_the_limit_is_shed() -> None:
    async with running_cluster(("d0",), max_running_requests=2) as cluster:
        cluster["d0"].script.step_s = 0.02
        answers = await asyncio.gather(*(complete(cluster, seed=seed, max_tokens=10) for seed in range(5)))
    codes = sorted(answer["error"]["code"] for answer in answers if answer["error"])
    assert codes == ["overloaded"] * 3
    assert all(answer["done"] for answer in answers if not answer["error"])


async def test_many_streams_at_once_never_mix() -> None:
    async with running_cluster(("p0", "p1", "d0", "d1")) as cluster:
        answers = await asyncio.gather(*(complete(cluster, seed=seed) for seed in range(24)))
    for seed, answer in enumerate(answers):
        assert answer["text"] == expected(seed)


async def test_the_openai_client_sees_typed_errors() -> None:
    async with running_cluster(("d0",), api_keys=("right",)) as cluster:
        with pytest.raises(openai.AuthenticationError):
            await cluster.client("wrong").models.list()
        client = cluster.client("right")
        with pytest.raises(openai.NotFoundError) as missing:
            await client.completions.create(model="none", prompt="x")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as bad:
            await client.completions.create(model="toy", prompt="x", temperature=9)
        assert bad.value.param == "temperature"
        cluster["d0"].script.step_s, cluster["d0"].script.die_at_seq = 0.001, 5
        stream = await client.completions.create(model="toy", prompt="x", max_tokens=30, stream=True)
        with pytest.raises(openai.APIError, match="no decode worker"):
            async for _ in stream:
                pass


async def test_connections_send_tokens_without_delay() -> None:
    """Every token arrives in a read of its own, not gathered with its successors."""
    async with running_cluster(("d0",)) as cluster:
        cluster["d0"].script.step_s = 0.02
        reads = 0
        body = {"model": "toy", "prompt": PROMPT, "max_tokens": 10, "stream": True, "logprobs": 0}
        async with (
            httpx.AsyncClient(base_url=cluster.url) as http,
            http.stream("POST", "/v1/completions", json=body) as response,
        ):
            async for _ in response.aiter_raw():
                reads += 1
        assert reads >= 10
