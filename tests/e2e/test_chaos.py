"""Promises 1 and 2 in bad weather: a short storm; `python -m tests.e2e.chaos` makes longer ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.chaos import chaos

pytestmark = pytest.mark.slow


def test_a_storm_of_deaths_and_freezes_changes_no_token_and_leaves_nothing(tiny_model: Path, tmp_path: Path) -> None:
    with chaos(tiny_model, tmp_path) as weather:
        weather.round(seed=3, count=20, spread_s=4.0)
        assert weather.weather["kill"] + weather.weather["freeze"] >= 2
        assert weather.outcomes["finished"] + weather.outcomes["finished after losses"] >= 8
