"""Mixtures of experts and latent attention compute what `transformers` computes, through the paged path."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from moe_models import MODELS, save_moe
from tiny_models import PagedRun

from engine.loader import load_model

PROMPT, ANSWER = 75, 32
TOKENS = torch.randint(0, 320, (PROMPT + ANSWER,), generator=torch.Generator().manual_seed(3)).tolist()


@pytest.mark.parametrize("kind", MODELS)
def test_prefill_chunks_and_decode_match_transformers(tmp_path: Path, kind: str) -> None:
    reference = save_moe(tmp_path, kind)
    with torch.inference_mode():
        expected = reference(torch.tensor([TOKENS])).logits[0]
    model = load_model(tmp_path, served_name=None, dtype="float32", max_model_len=None).model
    run = PagedRun(model, num_blocks=24, prompts=dict.fromkeys(range(4), PROMPT))

    def compare(sequence: int, start: int, end: int) -> None:
        logits = run.step([(sequence, start, TOKENS[start:end])])[0]
        scale = expected[end - 1].abs().max()
        assert (logits - expected[end - 1]).abs().max() / scale < 1e-4

    compare(0, 0, PROMPT)
    for sequence, size in ((1, 7), (2, 32)):
        for start in range(0, PROMPT, size):
            compare(sequence, start, min(start + size, PROMPT))
    for position in range(PROMPT, PROMPT + ANSWER):
        compare(0, position, position + 1)
    compare(3, 0, PROMPT + ANSWER)
