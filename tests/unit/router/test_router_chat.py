"""Chat over HTTP through a real session to workers that speak the real protocol."""

from __future__ import annotations

from cluster import running_cluster
from toy_model import byte_level_tokenizer, reference

from wire.sampling import SamplingParams

MESSAGES = [{"role": "user", "content": "Tell me of foxes."}]
PROMPT = "<|im_start|>user\nTell me of foxes.<|im_end|>\n<|im_start|>assistant\n"


def expected_text(max_tokens: int, seed: int, choice: int = 0) -> str:
    from toy_model import toy_card

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
