"""Drawing from logits on a device: the tokens of the host's sampler, whatever a request asks for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from device_models import runtime_of

from engine.device.device_logits import DeviceLogits
from engine.device.draw_memory import DrawMemory
from wire.sampling import SamplingParams

pytest.importorskip(
    "engine._sampling", reason="the host's sampler is not built here: it is what tokens are held against"
)

from engine.sampling.sampler import SamplingRow
from engine.sampling.step_logits import HostLogits

PLAIN = [
    {"temperature": 0.0},
    {"temperature": 0.0, "typical_p": 0.5},
    {"seed": 3},
    {"seed": 2**64 - 1, "top_k": 5, "temperature": 1.4},
    {"seed": 4, "top_p": 0.8, "min_p": 0.01, "choice": 3},
]
DEMANDING = [
    {"temperature": 0.0, "logit_bias": {7: 30.0}},
    {"seed": 5, "repetition_penalty": 1.3},
    {"seed": 6, "frequency_penalty": 0.5, "presence_penalty": 0.2},
    {"seed": 7, "typical_p": 0.6},
    {"seed": 8, "allowed_token_ids": (1, 2, 3)},
    {"seed": 9, "bad_words": ((4, 5), (6,))},
    {"temperature": 0.0, "logprobs": 2},
    {"temperature": 0.0, "min_tokens": 9},
]
VOCAB = 300


def _rows(wanted) -> list[SamplingRow]:
    made = [SamplingParams(**{"max_tokens": 20, **options}) for options in wanted]
    return [SamplingRow(params, [5, 9, 2, 4][: 2 + i % 3], 2, (0,)) for i, params in enumerate(made)]


def _logits(rows: int) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(3)) * 4


def _on_device(platform, logits: torch.Tensor) -> DeviceLogits:
    memory = DrawMemory(runtime_of(platform), platform.library, 24)
    return DeviceLogits(memory, logits.to(platform.device))


def test_what_the_kernel_draws_is_told_from_what_it_does_not():
    assert all(row.is_plain for row in _rows(PLAIN))
    assert not any(row.is_plain for row in _rows(DEMANDING))


@pytest.mark.parametrize(
    "wanted", [PLAIN, DEMANDING, [*DEMANDING, *PLAIN, *DEMANDING[:3]]], ids=["plain", "demanding", "both"]
)
def test_tokens_are_those_of_the_host(platform, wanted):
    rows, logits = _rows(wanted), _logits(len(wanted) + 2)
    places = list(range(1, len(wanted) + 1))
    expected = HostLogits(logits.numpy()).draw(places, rows)
    assert _on_device(platform, logits).draw(places, rows) == expected


def test_a_damaged_row_fails_alone(platform):
    rows, logits = _rows(PLAIN[:3]), _logits(3)
    logits[1, 17] = float("nan")
    first, damaged, last = _on_device(platform, logits).draw([0, 1, 2], rows)
    assert [first, last] == HostLogits(logits.numpy()).draw([0, 2], [rows[0], rows[2]])
    assert "not finite" in str(damaged)


def test_rows_come_to_the_host_as_asked(platform):
    logits = _logits(5)
    on_device = _on_device(platform, logits)
    assert on_device.shape == (5, VOCAB)
    np.testing.assert_array_equal(on_device.host([3, 1]), logits.numpy()[[3, 1]])
    np.testing.assert_array_equal(on_device.host(slice(2, 4)), logits.numpy()[2:4])
