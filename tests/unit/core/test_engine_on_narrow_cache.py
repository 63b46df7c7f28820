"""The promises of an engine over caches narrower than its numbers: one answer, whatever happens to its KV."""

from __future__ import annotations

import pytest
import torch
from engine_bench import Bench
from one_answer import check_one_answer
from test_engine_on_llama import PROMPT, RUN, SPEC
from weights_by_name import WeightsByName

from engine.config import EngineConfig
from engine.models.decoder import Decoder
from engine.ops.registry import select_ops
from engine.scheduling.request import RequestKind


class OverCache:
    """A model whose cache has this type unless told otherwise."""

    def __init__(self, model, kv_dtype):
        self._model, self._kv_dtype = model, kv_dtype
        self.spec, self.bind_kv_cache, self.forward = model.spec, model.bind_kv_cache, model.forward
        self.answer_is_apart, self.runs_ahead = model.answer_is_apart, False

    def kv_layout(self, block_tokens, kv_dtype):
        return self._model.kv_layout(block_tokens, self._kv_dtype if kv_dtype == "auto" else kv_dtype)


@pytest.fixture(params=["bfloat16", "int8", "fp8_e4m3"])
def make_narrow_bench(request):
    def make(**sizes):
        config = EngineConfig(**{"num_blocks": 64, "max_model_len": 256, **sizes})
        model = Decoder(SPEC, select_ops(torch.float32), WeightsByName(torch.float32), 256)
        return Bench(config, model=OverCache(model, request.param))

    return make


def test_alone_batched_chunked_cached_and_continued_are_one_answer(make_narrow_bench):
    check_one_answer(make_narrow_bench, PROMPT, RUN)


@pytest.mark.parametrize("host_blocks", [0, 20], ids=["recompute", "swap"])
def test_a_preempted_request_gives_the_same_tokens(make_narrow_bench, host_blocks):
    whole = make_narrow_bench(num_blocks=12).generate(PROMPT, **{**RUN, "max_tokens": 80})
    tight = make_narrow_bench(num_blocks=8, num_host_blocks=host_blocks)
    keys = [tight.submit(PROMPT, **{**RUN, "max_tokens": 80}, root=bytes([i] * 16)) for i in range(3)]
    tight.run()
    stats = tight.engine.stats
    assert stats.preemptions > 0
    assert (stats.swapped_in_blocks > 0) == (host_blocks > 0)
    assert [tight.answer(key) for key in keys] == [whole] * 3


def test_a_request_handed_over_gives_the_same_tokens(make_narrow_bench):
    alone = make_narrow_bench().generate(PROMPT, **RUN)
    source, dest = make_narrow_bench(), make_narrow_bench()
    reserved = dest.submit(PROMPT, kind=RequestKind.RESERVE, **RUN)
    dest.run()
    key = source.submit(PROMPT, kind=RequestKind.PREFILL, **RUN)
    source.run()
    for blocks in source.computed[key]:
        for index, block in enumerate(blocks.block_ids, start=blocks.first_block):
            dest.kv_cache[dest.reserved[reserved].block_ids[index]] = source.kv_cache[block]
    dest.engine.activate(reserved, source.answer(key))
    dest.run()
    assert source.answer(key) + dest.answer(reserved) == alone
