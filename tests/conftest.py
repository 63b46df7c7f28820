"""Fixtures for every test."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The cached SmolLM2-135M-Instruct file; fails, and says how to get it, when it is not there."""
    path = Path.home() / ".cache/splice/models/SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.is_file():
        pytest.fail(f"{path} is missing: run `splice pull smollm2`")
    return path
