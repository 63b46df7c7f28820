"""Mixtures of experts and latent attention keep the first promise: a request's bits depend on the request alone."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_models import save_moe
from tiny_models import PagedRun

from engine.loader import DtypeChoice, load_model
from engine.models.causal_lm import CausalLM
from engine.ops.names import OpsChoice

KINDS = ("mixtral", "qwen3-moe", "gpt-oss", "deepseek-v2-groups", "deepseek-v3")
ARITHMETICS = (("float32", "auto"), ("float32", "reference"), ("bfloat16", "reference"))


@dataclass(frozen=True)
class Sequence:
    """A request as far as a model sees it."""

    tokens: list[int]
    prompt: int


@pytest.fixture(scope="module", params=KINDS)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    save_moe(path, request.param)
    return path


@pytest.fixture(scope="module", params=ARITHMETICS, ids="-".join)
def model(request: pytest.FixtureRequest, directory: Path) -> CausalLM:
    dtype: DtypeChoice
    ops: OpsChoice
    dtype, ops = request.param
    return load_model(directory, served_name=None, dtype=dtype, max_model_len=None, ops=ops).model


def _sequences(rng: random.Random) -> list[Sequence]:
    prompts = [rng.randint(1, 60) for _ in range(rng.randint(2, 4))]
    return [Sequence([rng.randrange(320) for _ in range(prompt + rng.randint(0, 15))], prompt) for prompt in prompts]


def _undisturbed(model: CausalLM, sequence: Sequence) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the last token and the cache of a request alone: its prompt in one step, then token by token."""
    run = PagedRun(model, num_blocks=4, prompts={0: sequence.prompt})
    logits = run.step([(0, 0, sequence.tokens[: sequence.prompt])])[0]
    for position in range(sequence.prompt, len(sequence.tokens)):
        logits = run.step([(0, position, sequence.tokens[position : position + 1])])[0]
    return logits, run.keys_and_values(0, len(sequence.tokens))


@settings(max_examples=2, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_any_cut_and_any_company_give_the_bits_of_the_request_alone(model: CausalLM, seed: int) -> None:
    """Cuts go across the end of the prompt too: that is how a preempted request is computed again."""
    rng = random.Random(seed)
    sequences = _sequences(rng)
    run = PagedRun(model, 24, prompts={i: sequence.prompt for i, sequence in enumerate(sequences)})
    done, last = [0] * len(sequences), {}
    while any(done[i] < len(sequence.tokens) for i, sequence in enumerate(sequences)):
        parts = []
        for i, sequence in enumerate(sequences):
            left = len(sequence.tokens) - done[i]
            if left and rng.random() < 0.8:
                size = rng.choice((1, rng.randint(1, left), left))
                parts.append((i, done[i], sequence.tokens[done[i] : done[i] + size]))
                done[i] += size
        rng.shuffle(parts)
        if parts:
            last.update(zip((i for i, _, _ in parts), run.step(parts), strict=True))
    for i, sequence in enumerate(sequences):
        logits, cached = _undisturbed(model, sequence)
        assert torch.isfinite(logits).all()
        assert torch.equal(last[i], logits)
        assert torch.equal(run.keys_and_values(i, len(sequence.tokens)), cached)


def test_a_full_batch_of_one_token_each_has_the_bits_of_each_alone(model: CausalLM) -> None:
    """Forty rows of every expert's tile: the company a token has in its experts changes nothing."""
    run = PagedRun(model, num_blocks=41, prompts=dict.fromkeys(range(41), 3))
    tokens = [[7 * i % 320, 11 * i % 320, 5, 13 * i % 320] for i in range(40)]
    run.step([(i, 0, tokens[i][:3]) for i in range(40)])
    logits = run.step([(i, 3, tokens[i][3:]) for i in range(40)])
    for i in (0, 17, 39):
        assert torch.equal(logits[i], _undisturbed(model, Sequence(tokens[i], 3))[0])
