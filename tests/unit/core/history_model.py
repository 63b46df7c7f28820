"""A tiny model whose every logit depends on every KV row before it, read through the block table.

Each KV row holds the token and a running number made from the row before it, as found in the cache. One row that is
missing, stale or foreign changes all tokens after it. All arithmetic is on small integers, so it is exact in float32.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engine.blocks.kv_cache import KVCache
from engine.rope_spec import RopeSpec
from engine.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec
from engine.steps.batch import SequenceSlice, StepBatch
from wire.kv_layout import KVLayout

VOCAB = 61
_MODULUS = 8191
_LAYER = LayerSpec(AttentionSpec(1, 1, 2, RopeSpec(10000.0), scale=1.0), MlpSpec(2))


class HistoryModel:
    answer_is_apart = False
    runs_ahead = False

    def __init__(self) -> None:
        self.batches: list[StepBatch] = []
        self.spec = ModelSpec("history", 2, VOCAB, 4096, 1e-5, (_LAYER,), tie_embeddings=True)

    def kv_layout(self, block_tokens: int, kv_dtype: str) -> KVLayout:
        return KVLayout(num_layers=1, num_kv_heads=1, head_dim=2, block_tokens=block_tokens, dtype="float32")

    def bind_kv_cache(self, kv_cache: KVCache) -> None:
        self._keys = kv_cache.elements()[:, 0, 0, 0]  # [num_blocks, block_tokens, head_dim]

    def forward(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        self.batches.append(batch)
        rows = [self._one(part) for part in batch.slices]
        wanted = [row[len(row) - part.num_logits :] for row, part in zip(rows, batch.slices, strict=True)]
        return np.concatenate([np.empty((0, VOCAB), np.float32), *wanted])

    def _one(self, part: SequenceSlice) -> npt.NDArray[np.float32]:
        keys = self._keys
        size = keys.shape[1]
        end = part.start + len(part.token_ids)
        assert len(part.block_table) == -(-end // size)
        number = 1
        if part.start:
            last = part.start - 1
            number = int(keys[part.block_table[last // size], last % size, 1])
        for position, token in enumerate(part.token_ids, start=part.start):
            number = (number * 31 + (token + 1) * 17 + position) % _MODULUS
            keys[part.block_table[position // size], position % size] = (token + 1, number)
        seen = keys[list(part.block_table)].reshape(-1, 2)[:end].astype(np.int64)
        weights = np.arange(1, end + 1) * 7 % 101 + 1
        mixed = (seen.sum(axis=1) * weights).cumsum()[part.start :, None] % _MODULUS
        ids = np.arange(VOCAB)
        return ((mixed + 13) * (ids + 7) * (ids * ids + 3) % 997).astype(np.float32) / np.float32(200.0)
