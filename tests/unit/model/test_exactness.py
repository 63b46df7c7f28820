"""The bits of a token depend on its own sequence alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_architecture_parity import MODELS
from tiny_models import CONFIG, PagedRun, save_llama, save_model

from engine.loader import DtypeChoice, load_model
from engine.models.causal_lm import CausalLM
from engine.ops.names import OpsChoice


@pytest.fixture(
    scope="module",
    params=[
        ("llama", "float32", "reference"),
        ("llama", "bfloat16", "reference"),
        ("llama", "float32", "auto"),
        ("gemma2", "float32", "auto"),
        ("gemma2", "bfloat16", "reference"),
        ("gemma3", "bfloat16", "auto"),
        ("phi3, window, partial rotary", "float32", "auto"),
    ],
    ids="-".join,
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    dtype: DtypeChoice
    ops: OpsChoice
    name, dtype, ops = request.param
    directory = tmp_path_factory.mktemp("exactness")
    save_model(directory, MODELS[name]())
    return load_model(directory, served_name=None, dtype=dtype, max_model_len=None, ops=ops).model


def _random_sequences(rng: random.Random) -> list[list[int]]:
    count = rng.randint(2, 6)
    return [[rng.randrange(CONFIG["vocab_size"]) for _ in range(rng.randint(1, 110))] for _ in range(count)]


def _random_steps(rng: random.Random, sequences: list[list[int]]) -> list[list[tuple[int, int, list[int]]]]:
    """Cuts every sequence at random places and mixes the pieces into steps, in random order within a step."""
    done = [0] * len(sequences)
    steps = []
    while any(done[i] < len(tokens) for i, tokens in enumerate(sequences)):
        step = []
        for i, tokens in enumerate(sequences):
            left = len(tokens) - done[i]
            if left and rng.random() < 0.8:
                size = rng.choice((1, rng.randint(1, left), min(left, 32)))
                step.append((i, done[i], tokens[done[i] : done[i] + size]))
                done[i] += size
        rng.shuffle(step)
        if step:
            steps.append(step)
    return steps


@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
@pytest.mark.parametrize("kv_dtype", ["auto", "bfloat16"])
def test_alone_equals_batched_equals_chunked_bit_for_bit(model: CausalLM, kv_dtype: str, seed: int) -> None:
    rng = random.Random(seed)
    sequences = _random_sequences(rng)
    mixed = PagedRun(model, 40, kv_dtype)
    last: dict[int, torch.Tensor] = {}
    for step in _random_steps(rng, sequences):
        for (sequence, _, _), row in zip(step, mixed.step(step), strict=True):
            last[sequence] = row
    for sequence, tokens in enumerate(sequences):
        alone = PagedRun(model, 8, kv_dtype)
        logits = alone.step([(0, 0, tokens)])[0]
        assert torch.isfinite(logits).all()
        assert torch.equal(last[sequence], logits)
        assert torch.equal(mixed.keys_and_values(sequence, len(tokens)), alone.keys_and_values(0, len(tokens)))


def test_identical_rows_of_one_batch_have_identical_bits(model: CausalLM) -> None:
    run = PagedRun(model, num_blocks=80)
    run.step([(sequence, 0, [5] * 20) for sequence in range(40)])
    logits = run.step([(sequence, 20, [9]) for sequence in range(40)])
    assert all(torch.equal(row, logits[0]) for row in logits)


def test_a_longer_rotary_table_changes_no_bit(tmp_path: Path) -> None:
    save_llama(tmp_path)
    short, long = (
        load_model(tmp_path, served_name=None, dtype="float32", max_model_len=length).model for length in (67, 512)
    )
    tokens = list(range(67))
    first = PagedRun(short, 4).step([(0, 0, tokens)])
    assert torch.equal(first, PagedRun(long, 4).step([(0, 0, tokens)]))


def test_unpadded_products_would_break_the_promise() -> None:
    """Why the tiles are there: torch alone gives other bits for other numbers of rows."""
    torch.manual_seed(0)
    x, weight = torch.randn(64, 576), torch.randn(1536, 576)
    whole = x @ weight.t()
    assert any(not torch.equal(x[:rows] @ weight.t(), whole[:rows]) for rows in range(1, 33))
