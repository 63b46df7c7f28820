"""The real model's greedy text equals that of `transformers`, which reads the same GGUF file with its own code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from engine.blocks.kv_cache import KVCache
from engine.loader import LoadedModel, load_model
from engine.steps.batch import SequenceSlice, StepBatch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NUM_TOKENS = 64
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n",
    "Once upon a time, in a small village by the sea,",
    "The three laws of thermodynamics state that 1)",
    "Zutaten für 4 Personen: 500 g Mehl, 3 Eier, 250 ml Milch.",
)


@pytest.fixture(scope="module")
def loaded(smollm2_gguf: Path) -> LoadedModel:
    return load_model(smollm2_gguf, served_name=None, dtype="float32", max_model_len=512, activations="float32")


@pytest.fixture(scope="module")
def referee(smollm2_gguf: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(
        smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32, local_files_only=True
    )
    return model.eval()


def _greedy(loaded: LoadedModel, prompts: list[list[int]], kv_dtype: str) -> Iterator[torch.Tensor]:
    """Logits of every step, `[len(prompts), vocab]`, all prompts in one batch: the tokens drawn are appended."""
    blocks = 16
    layout = loaded.model.kv_layout(32, kv_dtype)
    loaded.model.bind_kv_cache(KVCache.zeros(layout, blocks * len(prompts)))
    done = [0] * len(prompts)
    while True:
        parts = [
            SequenceSlice(tokens[done[i] :], done[i], range(i * blocks, (i + 1) * blocks), wants_logits=True)
            for i, tokens in enumerate(prompts)
        ]
        logits = torch.from_numpy(loaded.model.forward(StepBatch(tuple(parts))))
        for i, tokens in enumerate(prompts):
            done[i] = len(tokens)
            tokens.append(int(logits[i].argmax()))
        yield logits


@pytest.mark.parametrize(("kv_dtype", "tie"), [("float32", 1e-2), ("auto", 1e-1)])
def test_greedy_text_of_five_prompts_equals_transformers(
    loaded: LoadedModel, referee: Any, kv_dtype: str, tie: float
) -> None:
    """The referee keeps keys and values in float32; rounded to what is kept by default, bfloat16, they move a logit by
    some hundredths, so that closer choices may go either way."""
    tokenizer = Tokenizer.from_str(loaded.card.tokenizer_json)
    prompts = [tokenizer.encode(text, add_special_tokens=False).ids for text in PROMPTS]
    ours = [list(prompt) for prompt in prompts]
    for _, _ in zip(range(NUM_TOKENS), _greedy(loaded, ours, kv_dtype), strict=False):
        pass
    for text, prompt, tokens in zip(PROMPTS, prompts, ours, strict=True):
        with torch.inference_mode():
            logits = referee(torch.tensor([tokens[: len(prompt) + NUM_TOKENS]])).logits[0]
        for index in range(len(prompt), len(prompt) + NUM_TOKENS):
            row = logits[index - 1]
            expected = int(row.argmax())
            if tokens[index] != expected:
                gap = float(row[expected] - row[tokens[index]])
                assert gap < tie, f"{text!r}: token {index - len(prompt)} differs by a logit gap of {gap}"
                break  # from an honest tie on, the texts may differ


def test_the_first_question_everyone_asks(loaded: LoadedModel) -> None:
    tokenizer = Tokenizer.from_str(loaded.card.tokenizer_json)
    assert loaded.card.chat_template is not None
    text = jinja2.Template(loaded.card.chat_template).render(
        messages=[{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True
    )
    prompt = tokenizer.encode(text, add_special_tokens=False).ids
    tokens = list(prompt)
    for _ in _greedy(loaded, [tokens], "auto"):
        if tokens[-1] in loaded.card.eos_token_ids or len(tokens) > len(prompt) + 32:
            break
    answer = tokenizer.decode(tokens[len(prompt) :], skip_special_tokens=False)
    assert answer == "The capital of France is Paris.<|im_end|>"
