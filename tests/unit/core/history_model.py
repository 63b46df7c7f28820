"""A tiny model whose every logit depends on every KV row before it, read through the block table.

Each KV row holds the token and a running number made from the row before it, as found in the cache. One row that is
missing, stale or foreign changes all tokens after it. All arithmetic is on small integers, so it is exact in float32.
"""

from __future__ import annotations

import torch

from engine.batch import SequenceSlice, StepBatch
from engine.rope_spec import RopeSpec
from engine.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec
from wire.kv_layout import KVLayout

VOCAB = 61
_MODULUS = 8191
_LAYER = LayerSpec(AttentionSpec(1, 1, 2, RopeSpec(10000.0), scale=1.0), MlpSpec(2))


class HistoryModel:
    def __init__(self) -> None:
        self.batches: list[StepBatch] = []
        self.spec = ModelSpec("history", 2, VOCAB, 4096, 1e-5, (_LAYER,), tie_embeddings=True)

    def kv_layout(self, block_tokens: int, kv_dtype: str) -> KVLayout:
        return KVLayout(num_layers=1, num_kv_heads=1, head_dim=2, block_tokens=block_tokens, dtype="float32")

    def forward(self, batch: StepBatch, kv_cache: torch.Tensor) -> torch.Tensor:
        self.batches.append(batch)
        rows = [self._one(part, kv_cache) for part in batch.slices]
        wanted = [row for row, part in zip(rows, batch.slices, strict=True) if part.wants_logits]
        return torch.stack(wanted) if wanted else torch.empty(0, VOCAB)

    def _one(self, part: SequenceSlice, kv_cache: torch.Tensor) -> torch.Tensor:
        size = kv_cache.shape[4]
        end = part.start + len(part.token_ids)
        assert len(part.block_table) == -(-end // size)
        keys = kv_cache[:, 0, 0, 0]  # [num_blocks, block_tokens, head_dim]
        number = 1
        if part.start:
            last = part.start - 1
            number = int(keys[part.block_table[last // size], last % size, 1])
        for position, token in enumerate(part.token_ids, start=part.start):
            number = (number * 31 + (token + 1) * 17 + position) % _MODULUS
            row = torch.tensor([float(token + 1), float(number)])
            keys[part.block_table[position // size], position % size] = row
        seen = keys[list(part.block_table)].reshape(-1, 2)[:end].to(torch.int64)
        weights = torch.arange(1, end + 1) * 7 % 101 + 1
        mixed = int((seen.sum(dim=1) * weights).sum()) % _MODULUS
        ids = torch.arange(VOCAB)
        return ((mixed + 13) * (ids + 7) * (ids * ids + 3) % 997).to(torch.float32) / 200.0
