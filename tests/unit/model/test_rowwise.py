"""A value's sigmoid does not depend on where in a tensor it stands."""

from __future__ import annotations

import torch

from engine.ops import rowwise


def test_a_value_gives_the_same_bits_at_every_place() -> None:
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    whole = rowwise.sigmoid(values)
    assert torch.allclose(whole.double(), values.double().sigmoid(), atol=1e-7)
    for first, length in [(0, 1), (3, 1997), (1999, 1), (5, 31), (700, 96)]:
        assert torch.equal(rowwise.sigmoid(values[first : first + length]), whole[first : first + length])
    rows = rowwise.sigmoid(values.view(40, 50)[:, 7:20])
    assert torch.equal(rows, whole.view(40, 50)[:, 7:20])


def test_long_tensors_have_no_seams() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1)).repeat(101)
    assert torch.equal(rowwise.sigmoid(values).view(101, 1000), rowwise.sigmoid(values[:1000]).expand(101, -1))
