"""An engine over a test model, and ways to run requests to their end."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from history_model import HistoryModel

from engine.blocks.block_pool import BlockPool, ListGenerations
from engine.blocks.kv_cache import KVCache
from engine.config import EngineConfig
from engine.engine import Engine
from engine.scheduling.request import Request, RequestKey, RequestKind
from engine.steps.step_output import ComputedBlocks, Reservation, StepOutput, TokenRow
from wire.errors import SpliceError
from wire.sampling import Beam, FinishReason, SamplingParams, TokenLogprobs
from wire.text.answer_text import AnswerText

EOS = 60
torch.set_num_threads(1)


class ErraticClock:
    """Seconds that pass between two readings: any number up to `longest_s`, the same for the same seed."""

    def __init__(self, seed: int, longest_s: float) -> None:
        self._random = random.Random(seed)
        self._longest_s = longest_s
        self._now_s = 0.0

    def __call__(self) -> float:
        self._now_s += self._random.random() ** 4 * self._longest_s
        return self._now_s


@dataclass
class Bench:
    """An engine, its parts, and everything it said."""

    config: EngineConfig
    model: Any = field(default_factory=HistoryModel)
    clock: Callable[[], float] = time.perf_counter
    rows: dict[RequestKey, list[TokenRow]] = field(default_factory=dict)
    reserved: dict[RequestKey, Reservation] = field(default_factory=dict)
    computed: dict[RequestKey, list[ComputedBlocks]] = field(default_factory=dict)
    failed: dict[RequestKey, SpliceError] = field(default_factory=dict)
    beams: dict[RequestKey, tuple[Beam, ...]] = field(default_factory=dict)
    scored: dict[RequestKey, list[TokenLogprobs]] = field(default_factory=dict)
    _keys: int = 0

    def __post_init__(self) -> None:
        config = self.config
        generations = ListGenerations(config.num_blocks)
        self.pool = BlockPool(config.num_blocks, generations, config.num_host_blocks, config.host_min_tokens)
        layout = self.model.kv_layout(self.config.block_tokens, "auto")
        # Rows nobody wrote yet must not look like anything a request could have written.
        if layout.is_scaled:
            self.kv_cache = torch.full((self.config.num_blocks, layout.block_bytes), 127, dtype=torch.uint8)
        else:
            shape = (self.config.num_blocks, *layout.block_shape)
            self.kv_cache = torch.full(shape, 8000.0, dtype=getattr(torch, layout.dtype))
        self.blocks = KVCache(layout, self.kv_cache.view(torch.uint8).numpy().reshape(self.config.num_blocks, -1))
        self.engine = Engine(self.model, self.blocks, self.config, self.pool, self.clock)

    def submit(
        self,
        tokens: Sequence[int],
        *,
        emitted: Sequence[int] = (),
        kind: RequestKind = RequestKind.GENERATE,
        priority: int = 0,
        skip_tokens: int = 0,
        root: bytes = bytes(16),
        answer_text: AnswerText | None = None,
        **sampling: object,
    ) -> RequestKey:
        rest = {"priority": priority, "skip_tokens": skip_tokens, "root": root, "answer_text": answer_text}
        request = self._request(tokens, emitted, kind, sampling, **rest)
        self.engine.submit(request)
        return request.key

    def fork(
        self, parent: RequestKey, tokens: Sequence[int], *, emitted: Sequence[int] = (), **sampling: object
    ) -> RequestKey:
        """A child of `parent` whose tokens are `tokens`, the prompt, and `emitted`."""
        child = self._request(tokens, emitted, RequestKind.GENERATE, sampling)
        self.engine.fork(parent, child)
        return child.key

    def _request(
        self,
        tokens: Sequence[int],
        emitted: Sequence[int],
        kind: RequestKind,
        sampling: dict[str, object],
        **rest: Any,
    ) -> Request:
        self._keys += 1
        params = SamplingParams(**{"max_tokens": 12, "temperature": 0.0, **sampling})  # type: ignore[arg-type]
        return Request((self._keys, 1), [*tokens, *emitted], len(tokens), params, kind=kind, **rest)

    def step(self) -> StepOutput:
        output = self.engine.step()
        self.engine.check()
        for row in output.rows:
            self.rows.setdefault(row.key, []).append(row)
        for answer in output.beams:
            assert answer.key not in self.beams, "a search answers once"
            self.beams[answer.key] = answer.beams
        for piece in output.scored:
            known = self.scored.setdefault(piece.key, [])
            assert piece.first == len(known) + 1, "pieces follow each other"
            assert len(self.rows.get(piece.key, [])) <= 1, "figures of the prompt come before, or with, the first token"
            known.extend(piece.logprobs)
        for reservation in output.reserved:
            self.reserved[reservation.key] = reservation
        for blocks in output.computed:
            self.computed.setdefault(blocks.key, []).append(blocks)
        self.failed.update(output.failed)
        return output

    def run(self, max_steps: int = 2000) -> None:
        for _ in range(max_steps):
            if not self.engine.has_work():
                return
            self.step()
        raise AssertionError("the engine does not come to rest")

    def answer(self, key: RequestKey) -> list[int]:
        """The tokens emitted, whose seqs must follow each other."""
        rows = self.rows.get(key, [])
        if rows:
            assert [row.seq for row in rows] == list(range(rows[0].seq, rows[0].seq + len(rows)))
        return [token for row in rows for token in row.tokens]

    def finish(self, key: RequestKey) -> FinishReason:
        return self.rows[key][-1].finish

    def generate(self, tokens: Sequence[int], **options: object) -> list[int]:
        key = self.submit(tokens, **options)  # type: ignore[arg-type]
        self.run()
        return self.answer(key)
