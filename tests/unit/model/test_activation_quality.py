"""Activations of 8 bits carry a bound on what they change, of real models on the text of `benchmarks.kernels.quality`.

Every operation has the same bits on every CPU, so these figures are the same wherever they are computed.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.kernels.quality import INT8, TEXT, Models, Numbers, measure, sequences_of

pytestmark = pytest.mark.slow

BFLOAT16 = Numbers("bfloat16")


@pytest.mark.parametrize("model", ["smollm2_gguf", "gemma3_gguf"])
def test_int8_activations_stay_near_those_of_float32(model: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(model)
    runs = (INT8, BFLOAT16)
    models = Models(path, runs)
    sequences = sequences_of(models.card, TEXT.read_text(encoding="utf-8"), 2)
    figures = {numbers: tally.figures() for numbers, tally in measure(models, sequences, runs).items()}
    assert 0 < figures[BFLOAT16].mean_kl < figures[INT8].mean_kl
    assert figures[INT8].are_within_bounds, figures[INT8]
