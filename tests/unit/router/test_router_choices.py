"""Several choices, the best of several, beams, and figures of the prompt, over HTTP and gRPC."""

from __future__ import annotations

from typing import Any

import grpc.aio
import httpx
import pytest
from openai import BadRequestError
from router_cluster import running_cluster, until
from router_toy_model import byte_level_tokenizer, reference, toy_card
from scripted_worker import logprob_of

from wire.sampling import Beam, FinishReason, SamplingParams, TokenLogprobs
from wire.v1 import inference_pb2 as pb
from wire.v1 import inference_pb2_grpc as rpc
from wire.v1 import sampling_pb2

PROMPT = list(range(20, 60))
MESSAGES = [{"role": "user", "content": "Tell me of foxes."}]
BEAMS = (
    Beam((30, 31, 32), (TokenLogprobs(-0.5), TokenLogprobs(-0.25), TokenLogprobs(-0.125)), -0.3, FinishReason.STOP),
    Beam((40, 41), (), -0.7, FinishReason.LENGTH),
    Beam((50,), (), -0.9, FinishReason.LENGTH),
)


def tokens_of(choice: int, max_tokens: int, seed: int) -> list[int]:
    return reference(PROMPT, SamplingParams(max_tokens=max_tokens, seed=seed, choice=choice), toy_card())[0]


def text_of(tokens: list[int]) -> str:
    return byte_level_tokenizer().decode(tokens)


def mean_logprob(tokens: list[int]) -> float:
    return sum(logprob_of(token) for token in tokens) / len(tokens)


async def test_later_choices_wait_for_the_first_ones_kv_and_share_it_on_the_same_workers() -> None:
    async with running_cluster(("p0", "p1", "d0", "d1")) as cluster:
        for worker in cluster.workers.values():
            worker.script.cached_tokens = 32
        answer = await cluster.client().completions.create(model="toy", prompt=PROMPT, max_tokens=5, seed=2, n=4)
        assert [choice.text for choice in answer.choices] == [text_of(tokens_of(i, 5, 2)) for i in range(4)]
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(PROMPT), 20)
        prefills = [len(cluster[name].seen.prefills) for name in ("p0", "p1")]
        assert sorted(prefills) == [0, 1], "the prompt is computed once"
        at_work = [name for name in ("d0", "d1") if cluster[name].seen.reserves]
        assert len(at_work) == 1
        decode = cluster[at_work[0]].seen
        # The end of the prompt, less than a block, is computed where the rest of it lies.
        assert [each.sampling.choice for each in decode.generates] == [1, 2, 3]
        assert [each.sampling.choice for each in decode.attaches and decode.reserves] == [0, 1, 2, 3]


async def test_a_first_choice_that_ends_on_prefill_lets_the_others_go() -> None:
    first = tokens_of(0, 1, 2)
    async with running_cluster() as cluster:
        answer = await cluster.client().completions.create(
            model="toy", prompt=PROMPT, max_tokens=4, seed=2, n=2, extra_body={"stop_token_ids": first}
        )
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "length"]


async def test_leaving_cancels_choices_that_have_not_started() -> None:
    async with running_cluster() as cluster:
        cluster["p0"].script.step_s = 60.0
        async with cluster.http() as http:
            body = {"model": "toy", "prompt": PROMPT, "max_tokens": 5, "n": 3}
            with pytest.raises(httpx.ReadTimeout):
                await http.post("/v1/completions", json=body, timeout=0.3)
            await until(lambda: not cluster["p0"].jobs and not cluster["d0"].jobs)
            assert 'num_requests_running{model_name="toy"} 0.0' in (await http.get("/metrics")).text
        assert len(cluster["d0"].seen.reserves) == 1


async def test_losing_the_first_choices_worker_ends_no_choice() -> None:
    async with running_cluster(("p0", "d0", "d1")) as cluster:
        for name in ("d0", "d1"):
            cluster[name].script.step_s = 0.005
        cluster["d0"].script.die_at_seq = 6
        answer = await cluster.client().completions.create(model="toy", prompt=PROMPT, max_tokens=20, seed=2, n=3)
    assert [choice.text for choice in answer.choices] == [text_of(tokens_of(i, 20, 2)) for i in range(3)]


async def test_best_of_returns_the_choices_with_the_highest_mean_log_probability() -> None:
    answers = [tokens_of(i, 6, 5) for i in range(5)]
    ranked = sorted(range(5), key=lambda i: -mean_logprob(answers[i]))[:2]
    async with running_cluster(("d0",)) as cluster:
        cluster["d0"].script.varying_logprobs = True
        options: dict[str, Any] = {"model": "toy", "max_tokens": 6, "seed": 5, "n": 2}
        answer = await cluster.client().completions.create(prompt=PROMPT, best_of=5, **options)
        assert [choice.text for choice in answer.choices] == [text_of(answers[i]) for i in ranked]
        assert [choice.index for choice in answer.choices] == [0, 1]
        assert answer.choices[0].logprobs is None
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 30
        two = await cluster.client().completions.create(prompt=[PROMPT, PROMPT], best_of=5, logprobs=0, **options)
        assert [choice.text for choice in two.choices] == [text_of(answers[i]) for i in ranked] * 2
        figures = two.choices[0].logprobs
        assert figures is not None
        assert figures.token_logprobs == [logprob_of(token) for token in answers[ranked[0]]]


async def test_grpc_gives_choices_their_index_and_the_best_of_several() -> None:
    answers = [tokens_of(i, 6, 5) for i in range(4)]
    sampling = sampling_pb2.SamplingParams(max_tokens=6, seed=5)
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=PROMPT), sampling=sampling, n=4)
    async with (
        running_cluster(("d0",)) as cluster,
        grpc.aio.insecure_channel(f"127.0.0.1:{cluster.ports.grpc}") as channel,
    ):
        cluster["d0"].script.varying_logprobs = True
        stub = rpc.InferenceStub(channel)
        heard: list[list[int]] = [[], [], [], []]
        messages = [each async for each in stub.Generate(request, timeout=10)]
        for message in messages:
            heard[message.choice].extend(message.token_ids)
        assert heard == answers
        assert sum(message.finish > 0 for message in messages) == 4
        assert [message.HasField("usage") for message in messages] == [False] * (len(messages) - 1) + [True]
        request.n, request.best_of = 1, 4
        [best] = [each async for each in stub.Generate(request, timeout=10)]
        assert list(best.token_ids) == max(answers, key=mean_logprob)
        assert list(best.logprobs) == []
        assert best.usage.completion_tokens == 24


@pytest.mark.parametrize("workers", [("p0", "d0"), ("d0",)])
async def test_prompt_logprobs_come_from_whoever_computes_the_prompt(workers: tuple[str, ...]) -> None:
    async with running_cluster(workers) as cluster, cluster.http() as http:
        body = {"model": "toy", "prompt": PROMPT, "max_tokens": 3, "seed": 1, "n": 2, "prompt_logprobs": 1}
        answer = (await http.post("/v1/completions", json=body)).json()
        told = [each.sampling.HasField("prompt_logprobs") for each in cluster["d0"].seen.reserves]
        assert not any(told)
    for choice in answer["choices"]:
        listed = choice["prompt_logprobs"]
        assert listed[0] is None
        assert len(listed) == len(PROMPT)
        for token, entry in zip(PROMPT[1:], listed[1:], strict=True):
            assert entry["3"] == {"logprob": -0.1, "rank": 1, "decoded_token": text_of([3])}
            assert entry[str(token)]["logprob"] == logprob_of(token)
            assert entry[str(token)]["rank"] == 2


async def test_prompt_logprobs_survive_a_lost_worker_and_reach_chat_and_grpc() -> None:
    async with running_cluster(("p0", "d0", "d1")) as cluster, cluster.http() as http:
        cluster["d0"].script.die_at_seq = cluster["d1"].script.die_at_seq = 3
        body = {"model": "toy", "messages": MESSAGES, "max_tokens": 9, "prompt_logprobs": 0}
        answer = (await http.post("/v1/chat/completions", json=body)).json()
        assert "error" in answer  # both decode workers die of it
    async with running_cluster(("p0", "d0", "d1")) as cluster, cluster.http() as http:
        cluster["d0"].script.die_at_seq = 3
        cluster["d1"].script.step_s = 0.002
        sampling = sampling_pb2.SamplingParams(max_tokens=9, seed=5, prompt_logprobs=0)
        request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=PROMPT), sampling=sampling)
        for _ in range(2):
            answer = (await http.post("/v1/chat/completions", json=body)).json()
            assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{cluster.ports.grpc}") as channel:
            messages = [each async for each in rpc.InferenceStub(channel).Generate(request, timeout=10)]
        assert [one.logprob for one in messages[0].prompt_logprobs] == [logprob_of(token) for token in PROMPT[1:]]
        assert not any(each.prompt_logprobs for each in messages[1:])


async def test_echo_gives_the_prompt_back_with_its_figures() -> None:
    text = "fox and dog"
    prompt = byte_level_tokenizer().encode(text).ids
    async with running_cluster(("d0",)) as cluster:
        create = cluster.client().completions.create
        answer = await create(model="toy", prompt=text, max_tokens=2, seed=1, echo=True, logprobs=1)
        assert answer.choices[0].text.startswith(text)
        figures = answer.choices[0].logprobs
        assert figures is not None
        assert figures.tokens is not None
        assert figures.token_logprobs == [None, *(logprob_of(token) for token in prompt[1:]), -0.25, -0.25]
        assert "".join(figures.tokens).startswith(text)
        scored = await create(model="toy", prompt=[prompt, prompt], max_tokens=0, echo=True, logprobs=0)
        assert [choice.text for choice in scored.choices] == [text, text]
        assert scored.usage is not None
        assert scored.usage.completion_tokens == 0
        assert scored.choices[1].logprobs is not None
        assert scored.choices[1].logprobs.token_logprobs == [None, *(logprob_of(token) for token in prompt[1:])]
        streamed = await create(model="toy", prompt=text, max_tokens=2, seed=1, echo=True, n=2, stream=True)
        texts = ["", ""]
        async for chunk in streamed:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        assert all(each.startswith(text) for each in texts)
        assert texts[0] == answer.choices[0].text


async def test_a_beam_search_is_told_to_decode_and_its_best_answers_are_returned() -> None:
    async with running_cluster() as cluster:
        cluster["d0"].script.beams = BEAMS
        options: dict[str, Any] = {"model": "toy", "prompt": PROMPT, "max_tokens": 6, "n": 3}
        extra = {"use_beam_search": True, "beam_width": 4, "length_penalty": 0.5, "early_stopping": "never"}
        answer = await cluster.client().completions.create(**options, logprobs=0, extra_body=extra)
        assert [choice.text for choice in answer.choices] == [text_of(list(beam.tokens)) for beam in BEAMS]
        assert [choice.finish_reason for choice in answer.choices] == ["stop", "length", "length"]
        assert [choice.score for choice in answer.choices] == [-0.3, -0.7, -0.9]  # type: ignore[attr-defined]
        assert answer.choices[0].logprobs is not None
        assert answer.choices[0].logprobs.token_logprobs == [-0.5, -0.25, -0.125]
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(PROMPT), 6)
        [reserve], [prefill] = cluster["d0"].seen.reserves, cluster["p0"].seen.prefills
        beam = reserve.sampling.beam_search
        assert (beam.width, beam.num_answers, beam.length_penalty) == (4, 3, 0.5)
        assert beam.early_stopping == sampling_pb2.EARLY_STOPPING_NEVER
        # Prefill finds the likeliest first tokens: two for each beam, as one token may end an answer.
        assert not prefill.sampling.HasField("beam_search")
        assert (prefill.sampling.temperature, prefill.sampling.logprobs, prefill.sampling.ignore_eos) == (0.0, 8, True)
        chat = await cluster.client().chat.completions.create(
            model="toy", messages=MESSAGES, max_tokens=6, n=2, extra_body={"use_beam_search": True}
        )
        assert chat.choices[0].message.content == text_of(list(BEAMS[0].tokens))
        with pytest.raises(BadRequestError, match="beam_width"):
            await cluster.client().completions.create(**options, extra_body={**extra, "beam_width": 2})


async def test_beams_are_streamed_whole_and_cut_where_a_stop_string_begins() -> None:
    stop = text_of(list(BEAMS[0].tokens[1:]))[1:]
    texts = [text_of(list(beam.tokens)) for beam in BEAMS]
    cut = [texts[0].removesuffix(stop), *texts[1:]]
    assert cut[0] != texts[0]
    assert not any(stop in text for text in cut)
    async with running_cluster() as cluster:
        cluster["d0"].script.beams = BEAMS
        options: dict[str, Any] = {"model": "toy", "prompt": PROMPT, "max_tokens": 6, "n": 3, "stop": stop}
        usage = {"include_usage": True}
        for kept, expected in ((False, cut), (True, texts)):
            extra = {"use_beam_search": True, "include_stop_str_in_output": kept}
            create = cluster.client().completions.create
            whole = await create(**options, logprobs=0, extra_body=extra)
            stream = await create(**options, logprobs=0, extra_body=extra, stream=True, stream_options=usage)
            chunks = [chunk async for chunk in stream]
            assert [choice.text for choice in whole.choices] == expected
            streamed = [choice for chunk in chunks for choice in chunk.choices]
            assert streamed == whole.choices, "one chunk a choice, with all that is said of it"
            assert [len(chunk.choices) for chunk in chunks] == [1, 1, 1, 0]
            assert chunks[-1].usage == whole.usage
            assert whole.usage is not None
            assert whole.usage.completion_tokens == 6
        chat = await cluster.client().chat.completions.create(
            model="toy", messages=MESSAGES, max_tokens=6, n=3, stop=stop, extra_body=extra, stream=True
        )
        said, scores = ["", "", ""], []
        async for part in chat:
            [choice] = part.choices
            said[choice.index] += choice.delta.content or ""
            scores += [choice.score] if choice.finish_reason else []  # type: ignore[attr-defined]
        assert (said, scores) == (texts, [beam.score for beam in BEAMS])
        for reserve, prefill in zip(cluster["d0"].seen.reserves, cluster["p0"].seen.prefills, strict=True):
            assert list(reserve.sampling.beam_search.stop) == [stop]
            assert not prefill.sampling.HasField("beam_search")


async def test_beams_over_grpc_and_after_a_lost_worker() -> None:
    async with (
        running_cluster(("p0", "p1", "d0")) as cluster,
        grpc.aio.insecure_channel(f"127.0.0.1:{cluster.ports.grpc}") as channel,
    ):
        cluster["d0"].script.beams = BEAMS
        cluster["p0"].script.die_at_seq = 0
        sampling = sampling_pb2.SamplingParams(max_tokens=6, beam_search=sampling_pb2.BeamSearch(width=3))
        request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=PROMPT), sampling=sampling, n=3)
        for _ in range(2):
            messages = [each async for each in rpc.InferenceStub(channel).Generate(request, timeout=10)]
            assert [tuple(each.token_ids) for each in messages] == [beam.tokens for beam in BEAMS]
            assert [each.score for each in messages] == [beam.score for beam in BEAMS]
            assert [each.choice for each in messages] == [0, 1, 2]
            assert [each.HasField("receipt") for each in messages] == [False, False, True]
        for field in ({"num_answers": 1}, {"stop": ["x"]}, {"keep_special_tokens": True}):
            request.sampling.beam_search.CopyFrom(sampling_pb2.BeamSearch(width=3, **field))  # type: ignore[arg-type]
            with pytest.raises(grpc.aio.AioRpcError, match="between router and worker"):
                await anext(aiter(rpc.InferenceStub(channel).Generate(request, timeout=10)))


async def test_bad_words_reach_the_worker_as_the_tokens_that_spell_them() -> None:
    tokenizer = byte_level_tokenizer()
    async with running_cluster(("d0",)) as cluster:
        await cluster.client().completions.create(
            model="toy",
            prompt=PROMPT,
            max_tokens=1,
            extra_body={"bad_words": [" fox", "lazy dog"], "bad_words_ids": [[5, 6]], "allowed_token_ids": [7, 8]},
        )
        sampling = cluster["d0"].seen.generates[0].sampling
    spelled = [tokenizer.encode(each).ids for each in ("fox", " fox", "lazy dog", " lazy dog")]
    assert [list(each.ids) for each in sampling.bad_words] == [[5, 6], *spelled]
    assert list(sampling.allowed_token_ids) == [7, 8]
