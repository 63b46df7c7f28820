"""Drawing on the device: the very token the CPU's sampler draws."""

from __future__ import annotations

import kernel_platform
import pytest
import torch

from engine.ops.cuda.draw import DrawChoice, draw_tokens
from wire.errors import SpliceError

CHOICES = [
    DrawChoice(0.0, 1, 5),
    DrawChoice(1.0, 2, 5),
    DrawChoice(0.7, 3, 0, choice=2),
    DrawChoice(1.0, 2**64 - 1, 7, top_k=1),
    DrawChoice(1.3, 4, 9, top_k=40),
    DrawChoice(1.0, 5, 9, top_p=0.9),
    DrawChoice(0.9, 6, 9, top_p=0.05),
    DrawChoice(2.0, 7, 9, min_p=0.02),
    DrawChoice(1.0, 8, 1 << 40, top_k=50, top_p=0.8, min_p=0.001),
    DrawChoice(1e-9, 9, 9, top_p=0.5),
    DrawChoice(50.0, 10, 9, top_k=7, top_p=0.99),
]


def _on_cpu(logits: torch.Tensor, choices: list[DrawChoice]) -> list[int]:
    """By the native sampler; where that is not built, as on a machine that only checks kernels, in the emulator."""
    try:
        from engine import _sampling as sampling
    except ImportError:
        return draw_tokens(kernel_platform.emulated().library, logits, choices).tolist()
    sampler, drawn = sampling.Sampler(), []
    for row, one in enumerate(choices):
        plan = sampling.Plan(
            temperature=one.temperature, min_p=one.min_p, top_k=one.top_k, typical_p=1.0, top_p=one.top_p,
            seed=one.seed, choice=one.choice, allowed=None, bad=[], bias=[], stopping=[], min_tokens=0,
            repetition=1.0, frequency=0.0, presence=0.0,
        )  # fmt: skip
        drawn.append(sampler.draw(logits.numpy(), row, plan, [0] * one.position, 0))
    return drawn


def _near(choices: list[DrawChoice]) -> list[DrawChoice]:
    """With positions for which a list of tokens is not too long."""
    return [DrawChoice(**{name: getattr(one, name) for name in one.__slots__} | {"position": one.position % 97})
            for one in choices]  # fmt: skip


def _logits(kind: str, rows: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size)
    logits = torch.randn(rows, size, generator=generator) * 4
    if kind == "alike":  # many ties, zeros of both signs
        logits = logits.round()
        logits[logits == 0] *= -1
    if kind == "bounded":
        logits[torch.rand(logits.shape, generator=generator) < 0.3] = float("-inf")
        logits[:, 0] = 0.0
    return logits


@pytest.mark.parametrize("kind", ["spread", "alike", "bounded"])
@pytest.mark.parametrize("size", [1, 33, 1000, 9001])
def test_the_token_is_the_one_the_cpu_draws(platform, reseeded, kind, size):
    choices = _near(CHOICES)
    logits = _logits(kind, len(choices), size)
    reseeded(size)
    assert draw_tokens(platform.library, logits.to(platform.device), choices).tolist() == _on_cpu(logits, choices)


def test_a_vocabulary_of_128_thousand(platform):
    choices = _near(CHOICES)[4:6] if platform.name == "emulated" else _near(CHOICES)
    logits = _logits("spread", len(choices), 128256)
    assert draw_tokens(platform.library, logits.to(platform.device), choices).tolist() == _on_cpu(logits, choices)


def test_rows_that_are_not_finite_are_said_to_be(platform):
    logits = torch.zeros(4, 40)
    logits[0, 39] = float("nan")
    logits[1, 3] = float("inf")
    logits[2] = float("-inf")
    found = draw_tokens(
        platform.library, logits.to(platform.device), [DrawChoice(t, 1, 1) for t in (1.0, 0.0, 1.0, 0.0)]
    )
    assert found.tolist() == [-1, -1, -1, 0]


def test_a_row_beside_others_draws_what_it_draws_alone(platform):
    logits = _logits("spread", 3, 500).to(platform.device)
    choices = _near(CHOICES)[4:7]
    alone = [draw_tokens(platform.library, logits[i : i + 1], [choices[i]]).item() for i in range(3)]
    assert draw_tokens(platform.library, logits, choices).tolist() == alone


def test_rows_longer_than_any_vocabulary_are_refused(platform):
    logits = torch.zeros(1, (1 << 19) + 1, device=platform.device)
    with pytest.raises(SpliceError, match="expected 1 to 524288"):
        draw_tokens(platform.library, logits, [DrawChoice(0.0, 0, 0)])
