"""What a request must answer: the same model in an engine of our own, which nothing disturbs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine.blocks.block_pool import BlockPool, ListGenerations
from engine.blocks.kv_cache import KVCache
from engine.config import EngineConfig
from engine.engine import Engine
from engine.loader import load_model
from engine.scheduling.request import Request, RequestKey
from wire.sampling import FinishReason, SamplingParams

NUM_BLOCKS = 600
Answer = tuple[list[int], list[float], FinishReason]
"""Tokens, their log probabilities where asked for, and why it ended."""


class Undisturbed:
    """One engine with room for everything: no preemption, no hand-off, no cache."""

    def __init__(self, model: Path) -> None:
        self._loaded = load_model(model, served_name=None, dtype="auto", max_model_len=None)
        self.vocab_size = self._loaded.model.spec.vocab_size

    def answers(self, asks: Sequence[tuple[Sequence[int], SamplingParams]]) -> list[Answer]:
        engine = self._engine()
        answers: dict[RequestKey, Answer] = {}
        for number, (prompt, sampling) in enumerate(asks):
            engine.submit(Request((number, 1), list(prompt), len(prompt), sampling))
            answers[number, 1] = ([], [], FinishReason.NONE)
        while engine.has_work():
            output = engine.step()
            assert not output.failed, output.failed
            for row in output.rows:
                tokens, logprobs, _ = answers[row.key]
                tokens.extend(row.tokens)
                logprobs.extend(each.logprob for each in row.logprobs or ())
                answers[row.key] = (tokens, logprobs, row.finish)
        return list(answers.values())

    def _engine(self) -> Engine:
        model, card = self._loaded.model, self._loaded.card
        layout = model.kv_layout(32, "auto")
        config = EngineConfig(
            num_blocks=NUM_BLOCKS,
            max_model_len=card.max_model_len,
            enable_prefix_caching=False,
            eos_token_ids=card.eos_token_ids,
        )
        return Engine(
            model, KVCache.zeros(layout, NUM_BLOCKS), config, BlockPool(NUM_BLOCKS, ListGenerations(NUM_BLOCKS))
        )
