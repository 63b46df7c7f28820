"""Chat over HTTP through a real session to workers that speak the real protocol."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from router_cluster import running_cluster, until, until_true
from router_toy_model import byte_level_tokenizer, next_token, reference, toy_card

from wire.sampling import SamplingParams
from wire.v1 import inference_pb2

MESSAGES = [{"role": "user", "content": "Tell me of foxes."}]
PROMPT = "<|im_start|>user\nTell me of foxes.<|im_end|>\n<|im_start|>assistant\n"


def expected_text(max_tokens: int, seed: int, choice: int = 0) -> str:
    prompt = byte_level_tokenizer().encode(PROMPT, add_special_tokens=False).ids
    tokens, _ = reference(prompt, SamplingParams(max_tokens=max_tokens, seed=seed, choice=choice), toy_card())
    return byte_level_tokenizer().decode(tokens)


async def test_streamed_chat_is_the_reference_text_through_prefill_and_decode() -> None:
    async with running_cluster() as cluster:
        stream = await cluster.client().chat.completions.create(
            model="toy", messages=MESSAGES, max_tokens=24, seed=7, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == expected_text(24, 7)
        assert chunks[0].choices[0].delta.role == "assistant"
        assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["length"]
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 24
        assert len(cluster["p0"].seen.prefills) == 1
        assert len(cluster["d0"].seen.attaches) == 1
        assert cluster["d0"].seen.generates == []


async def test_a_whole_answer_equals_the_streamed_one_and_counts_exactly() -> None:
    async with running_cluster() as cluster:
        answer = await cluster.client().chat.completions.create(
            model="toy", messages=MESSAGES, max_completion_tokens=9, seed=3
        )
    assert answer.choices[0].message.content == expected_text(9, 3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    prompt = len(byte_level_tokenizer().encode(PROMPT, add_special_tokens=False).ids)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, 9)
    assert answer.usage.total_tokens == prompt + 9


@pytest.mark.parametrize("stream", [True, False])
async def test_n_choices_are_drawn_apart(stream: bool) -> None:
    async with running_cluster() as cluster:
        options: dict[str, Any] = {"model": "toy", "messages": MESSAGES, "max_tokens": 6, "seed": 5, "n": 3}
        texts = ["", "", ""]
        if stream:
            async for chunk in await cluster.client().chat.completions.create(**options, stream=True):
                for choice in chunk.choices:
                    texts[choice.index] += choice.delta.content or ""
        else:
            answer = await cluster.client().chat.completions.create(**options)
            texts = [choice.message.content or "" for choice in answer.choices]
            assert answer.usage is not None
            assert answer.usage.completion_tokens == 18
    assert texts == [expected_text(6, 5, choice) for choice in range(3)]


async def test_stop_strings_end_the_answer_and_cancel_the_work() -> None:
    whole = expected_text(60, 11)
    stop = whole[20:23]
    cut = whole[: whole.index(stop)]
    async with running_cluster() as cluster:
        cluster["d0"].script.step_s = 0.002
        for include in (False, True):
            answer = await cluster.client().chat.completions.create(
                model="toy",
                messages=MESSAGES,
                max_tokens=60,
                seed=11,
                stop=[stop, "never there"],
                extra_body={"include_stop_str_in_output": include},
            )
            assert answer.choices[0].message.content == cut + (stop if include else "")
            assert answer.choices[0].finish_reason == "stop"
            assert answer.usage is not None
            assert answer.usage.completion_tokens < 60
        await until(lambda: not cluster["d0"].jobs)
        assert cluster["d0"].seen.cancels


async def test_stop_strings_count_only_beyond_min_tokens() -> None:
    whole = expected_text(40, 11)
    async with running_cluster() as cluster:
        answer = await cluster.client().chat.completions.create(
            model="toy",
            messages=MESSAGES,
            max_tokens=40,
            seed=11,
            stop=[whole[:2]],
            extra_body={"min_tokens": 40},
        )
    assert answer.choices[0].message.content == whole
    assert answer.choices[0].finish_reason == "length"


async def test_stop_on_the_first_token_never_reaches_decodes_batch() -> None:
    card = toy_card()
    prompt = byte_level_tokenizer().encode(PROMPT, add_special_tokens=False).ids
    first = next_token(prompt, SamplingParams(max_tokens=1, seed=2), card)
    async with running_cluster() as cluster:
        answer = await cluster.client().chat.completions.create(
            model="toy", messages=MESSAGES, max_tokens=9, seed=2, extra_body={"stop_token_ids": [first]}
        )
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 1
        await until(lambda: not cluster["d0"].jobs)


async def test_logprobs_of_chat_carry_token_bytes_and_alternatives() -> None:
    async with running_cluster() as cluster:
        answer = await cluster.client().chat.completions.create(
            model="toy", messages=MESSAGES, max_tokens=4, seed=1, logprobs=True, top_logprobs=3
        )
        assert answer.choices[0].logprobs is not None
        content = answer.choices[0].logprobs.content or []
        spelled = b"".join(bytes(token.bytes or ()) for token in content)
        assert spelled.decode("utf-8", errors="replace") == expected_text(4, 1)
        assert [len(token.top_logprobs) for token in content] == [3] * 4
        assert content[0].logprob == -0.25

        legacy = await cluster.client().completions.create(model="toy", prompt=[5, 6], max_tokens=3, logprobs=2)
        figures = legacy.choices[0].logprobs
        assert figures is not None
        assert figures.token_logprobs == [-0.25] * 3
        assert figures.text_offset is not None
        assert figures.tokens is not None
        assert figures.text_offset[1] == len(figures.tokens[0])


async def test_completions_take_every_form_of_prompt() -> None:
    card, tokenizer = toy_card(), byte_level_tokenizer()
    sampling = SamplingParams(max_tokens=5, seed=9)
    prompts = ["fox", "lazy dog"]
    ids = [tokenizer.encode(prompt).ids for prompt in prompts]
    texts = [tokenizer.decode(reference(each, sampling, card)[0]) for each in ids]
    async with running_cluster() as cluster:
        create = cluster.client().completions.create
        for prompt, expected in (
            (prompts[0], texts[:1]),
            (prompts, texts),
            (ids[0], texts[:1]),
            (ids, texts),
        ):
            answer = await create(model="toy", prompt=prompt, max_tokens=5, seed=9)
            assert [choice.text for choice in answer.choices] == expected
            assert answer.usage is not None
            assert answer.usage.prompt_tokens == sum(len(each) for each in ids[: len(expected)])
        assert (await create(model="toy", prompt="fox")).usage.completion_tokens == 16  # type: ignore[union-attr]


async def test_the_receipt_is_given_on_request_and_names_the_way() -> None:
    async with running_cluster() as cluster:
        body = {"model": "toy", "messages": MESSAGES, "max_tokens": 8}
        async with cluster.http() as http:
            receipted = await http.post("/v1/chat/completions", json=body, headers={"x-splice-receipt": "1"})
            plain = await http.post("/v1/chat/completions", json=body)
            streamed = await http.post(
                "/v1/chat/completions", json={**body, "stream": True}, headers={"x-splice-receipt": "1"}
            )
        receipt = receipted.json()["splice_receipt"]
        assert (receipt["prefill_worker"], receipt["decode_worker"]) == ("p0", "d0")
        assert (receipt["transport"], receipt["attempts"]) == ("shm", 1)
        assert receipt["kv_bytes"] > 0
        assert receipt["ttft_s"] > 0
        assert set(receipt) == {each.name for each in inference_pb2.Receipt.DESCRIPTOR.fields}
        assert "splice_receipt" not in plain.json()
        events = [line[6:] for line in streamed.text.splitlines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        last = json.loads(events[-2])
        assert last["choices"] == []
        assert last["splice_receipt"]["decode_worker"] == "d0"
        again = await cluster.client().chat.completions.create(**body, seed=receipt["seed"])  # type: ignore[call-overload]
        assert again.choices[0].message.content == receipted.json()["choices"][0]["message"]["content"]


async def test_models_health_ready_and_metrics() -> None:
    async with running_cluster() as cluster, cluster.http() as http:
        models = [model async for model in cluster.client().models.list()]
        assert [model.id for model in models] == ["toy"]
        assert (await cluster.client().models.retrieve("toy")).id == "toy"
        before = (await http.get("/health")).json()["progress"]
        await cluster.client().chat.completions.create(model="toy", messages=MESSAGES, max_tokens=8)
        await until_true(lambda: _progressed(http, before))
        metrics = (await http.get("/metrics")).text
    for line in (
        'splice:request_success_total{finished_reason="length",model_name="toy"} 1.0',
        'splice:generation_tokens_total{model_name="toy"} 8.0',
        'splice:workers{role="decode"} 1.0',
        'splice:num_requests_running{model_name="toy"} 0.0',
    ):
        assert line in metrics
    assert 'splice:kv_transfer_bytes_total{transport="shm"}' in metrics
    assert 'splice:time_to_first_token_seconds_count{model_name="toy"} 1.0' in metrics


async def _progressed(http: httpx.AsyncClient, before: int) -> bool:
    status = (await http.get("/health")).json()
    return status["status"] == "ok" and status["progress"] > before


async def test_request_ids_are_echoed_when_sane_and_drawn_otherwise() -> None:
    async with running_cluster(("d0",)) as cluster, cluster.http() as http:
        assert (await http.get("/health", headers={"x-request-id": "abc-1"})).headers["x-request-id"] == "abc-1"
        drawn = (await http.get("/health", headers={"x-request-id": "a b\tc"})).headers["x-request-id"]
        assert drawn.startswith("req-")
