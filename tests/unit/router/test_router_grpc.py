"""The gRPC front door over a real channel."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from router_cluster import Cluster, running_cluster, until
from router_toy_model import byte_level_tokenizer, reference, toy_card

from wire.sampling import SamplingParams
from wire.v1 import inference_pb2 as pb
from wire.v1 import inference_pb2_grpc as rpc
from wire.v1 import sampling_pb2

IDS = list(range(20, 50))


def channel_of(cluster: Cluster) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"127.0.0.1:{cluster.ports.grpc}")


def request(max_tokens: int = 12, **more: Any) -> pb.GenerateRequest:
    sampling = sampling_pb2.SamplingParams(max_tokens=max_tokens, seed=4, **more.pop("sampling", {}))
    return pb.GenerateRequest(model="toy", token_ids=pb.TokenIds(ids=IDS), sampling=sampling, **more)


async def failure(call: Any) -> tuple[grpc.StatusCode, str, str | None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    trailing = dict(caught.value.trailing_metadata() or ())
    return caught.value.code(), str(trailing.get("splice-error-code")), trailing.get("splice-error-param")  # type: ignore[return-value]


async def test_generate_streams_the_reference_tokens_with_usage_and_receipt() -> None:
    tokens, _ = reference(IDS, SamplingParams(max_tokens=12, seed=4), toy_card())
    async with running_cluster() as cluster, channel_of(cluster) as channel:
        answers = [each async for each in rpc.InferenceStub(channel).Generate(request(), timeout=10)]
    assert [token for each in answers for token in each.token_ids] == tokens
    assert "".join(each.text for each in answers) == byte_level_tokenizer().decode(tokens)
    assert [each.finish for each in answers if each.finish] == [sampling_pb2.FINISH_REASON_LENGTH]
    assert (answers[-1].usage.prompt_tokens, answers[-1].usage.completion_tokens) == (30, 12)
    assert (answers[-1].receipt.prefill_worker, answers[-1].receipt.seed) == ("p0", 4)


async def test_http_and_grpc_refuse_the_same_with_the_same_code() -> None:
    status = grpc.StatusCode
    cases: list[tuple[pb.GenerateRequest, grpc.StatusCode, str, str]] = [
        (request(sampling={"temperature": 9.0}), status.INVALID_ARGUMENT, "invalid_request", "temperature"),
        (request(sampling={"temperature": float("nan")}), status.INVALID_ARGUMENT, "invalid_request", "temperature"),
        (request(sampling={"top_p": 0.0}), status.INVALID_ARGUMENT, "invalid_request", "top_p"),
        (request(sampling={"logprobs": 21}), status.INVALID_ARGUMENT, "invalid_request", "logprobs"),
        (request(sampling={"logit_bias": {99999: 1.0}}), status.INVALID_ARGUMENT, "invalid_request", "logit_bias"),
        (request(sampling={"choice": 16}), status.INVALID_ARGUMENT, "invalid_request", "choice"),
        (request(0), status.INVALID_ARGUMENT, "invalid_request", "max_tokens"),
        (request(4096), status.INVALID_ARGUMENT, "context_length_exceeded", "max_tokens"),
        (request(stop=[""]), status.INVALID_ARGUMENT, "invalid_request", "stop"),
        (request(timeout_s=-1.0), status.INVALID_ARGUMENT, "invalid_request", "timeout_s"),
        (pb.GenerateRequest(model="toy"), status.INVALID_ARGUMENT, "invalid_request", "prompt"),
        (pb.GenerateRequest(model="gpt", text="x"), status.NOT_FOUND, "model_not_found", "model"),
        (
            pb.GenerateRequest(model="toy", token_ids=pb.TokenIds(ids=[10**6])),
            status.INVALID_ARGUMENT,
            "invalid_request",
            "token_ids",
        ),
    ]
    async with running_cluster(("d0",)) as cluster, channel_of(cluster) as channel:
        stub = rpc.InferenceStub(channel)
        for bad, *wanted in cases:
            assert await failure(stub.Generate(bad, timeout=5)) == tuple(wanted), bad
        assert [each async for each in stub.Generate(request(), timeout=5)]
    assert len(cluster["d0"].seen.generates) == 1


async def test_the_calls_deadline_and_its_cancellation_end_the_work() -> None:
    async with running_cluster(("d0",)) as cluster, channel_of(cluster) as channel:
        cluster["d0"].script.step_s = 0.02
        stub = rpc.InferenceStub(channel)
        assert (await failure(stub.Generate(request(2000), timeout=0.3)))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: not cluster["d0"].jobs)
        own = await failure(stub.Generate(request(2000, timeout_s=0.3), timeout=10))
        assert own[:2] == (grpc.StatusCode.DEADLINE_EXCEEDED, "deadline_exceeded")
        call = stub.Generate(request(2000), timeout=10)
        await call.read()
        call.cancel()
        await until(lambda: not cluster["d0"].jobs)


async def test_chat_tokenize_and_models_agree_with_http() -> None:
    async with running_cluster() as cluster, channel_of(cluster) as channel, cluster.http() as http:
        stub = rpc.InferenceStub(channel)
        chat = pb.ChatMessages(messages=[pb.ChatMessage(role="user", content="hi fox")])
        ids = (await stub.Tokenize(pb.TokenizeRequest(model="toy", chat=chat), timeout=5)).ids
        sampling = sampling_pb2.SamplingParams(max_tokens=5, seed=8)
        answers = [each async for each in stub.Generate(pb.GenerateRequest(chat=chat, sampling=sampling), timeout=5)]
        body = {"model": "toy", "messages": [{"role": "user", "content": "hi fox"}], "max_tokens": 5, "seed": 8}
        web = (await http.post("/v1/chat/completions", json=body)).json()
        assert "".join(each.text for each in answers) == web["choices"][0]["message"]["content"]
        assert answers[-1].usage.prompt_tokens == len(ids) == web["usage"]["prompt_tokens"]
        [model] = (await stub.ListModels(pb.ListModelsRequest(), timeout=5)).models
        assert (model.id, model.max_model_len, model.prefill_workers, model.decode_workers) == ("toy", 4096, 1, 1)


async def test_keys_are_asked_for_by_every_method_but_health() -> None:
    async with running_cluster(("d0",), api_keys=("right",)) as cluster, channel_of(cluster) as channel:
        stub = rpc.InferenceStub(channel)
        assert (await failure(stub.Generate(request(), timeout=5)))[:2] == (
            grpc.StatusCode.UNAUTHENTICATED,
            "invalid_api_key",
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListModels(pb.ListModelsRequest(), timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        key = (("authorization", "Bearer right"),)
        assert (await stub.ListModels(pb.ListModelsRequest(), timeout=5, metadata=key)).models
        health = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=5)).status == 1


async def test_health_follows_the_workers_and_reflection_lists_the_service() -> None:
    async with running_cluster(("d0",)) as cluster, channel_of(cluster) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watched = health_pb2.HealthCheckRequest(service="splice.v1.Inference")
        states = health.Watch(watched, timeout=10)
        while (await states.read()).status != health_pb2.HealthCheckResponse.SERVING:
            pass
        await cluster["d0"].stop()
        while (await states.read()).status != health_pb2.HealthCheckResponse.NOT_SERVING:
            pass
        states.cancel()
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=5
        )
        names = {each.name for each in (await call.read()).list_services_response.service}
        assert "splice.v1.Inference" in names
        call.cancel()
