"""Makes engines of any size over the history model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine_bench import EOS, Bench

from engine.config import EngineConfig


@pytest.fixture
def make_bench() -> Callable[..., Bench]:
    def make(**config: object) -> Bench:
        settings: dict[str, object] = {
            "num_blocks": 200,
            "block_tokens": 4,
            "max_model_len": 200,
            "max_num_seqs": 16,
            "max_num_batched_tokens": 256,
            "eos_token_ids": (EOS,),
            **config,
        }
        options = {"clock": settings.pop("clock")} if "clock" in settings else {}
        return Bench(EngineConfig(**settings), **options)  # type: ignore[arg-type]

    return make
