"""What the prefix cache is made of: the order of eviction, the search by tokens, the numbered events."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.blocks.cached_block import BlockContent, CachedBlock, Tier
from engine.blocks.eviction_order import EvictionOrder
from engine.blocks.kv_events import KvEventKind, KvEventLog
from engine.blocks.prefix_cache import PrefixCache
from engine.blocks.token_index import TokenIndex
from wire.block_hash import ROOT, block_hash

runs = st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple)


def content_of(tokens, parent=ROOT, *, is_full=False):
    return BlockContent(block_hash(parent, tokens), parent, tokens, is_full)


def num_shared(first, second):
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


@settings(max_examples=300, deadline=None, derandomize=True)
@given(known=st.sets(runs, max_size=12), gone=st.sets(runs, max_size=4), wanted=runs)
def test_the_nearest_content_shares_as_many_leading_tokens_as_any(known, gone, wanted):
    index = TokenIndex()
    for tokens in known:
        index.add(content_of(tokens))
    for tokens in gone & known:
        index.remove(content_of(tokens))
    left = known - gone
    assert len(index) == len(left)
    best = max((num_shared(tokens, wanted) for tokens in left), default=0)
    found = index.nearest(ROOT, list(wanted))
    if best == 0:
        assert found is None
    else:
        name, shared = found
        assert shared == best
        assert any(content_of(tokens).name == name and num_shared(tokens, wanted) == best for tokens in left)
    assert index.nearest(b"another parent", wanted) is None


@settings(max_examples=200, deadline=None, derandomize=True)
@given(events=st.lists(st.tuples(st.integers(0, 6), st.integers(-1, 2))))
def test_lower_levels_go_first_and_equals_in_the_order_they_came(events):
    order, model = EvictionOrder(), []
    for block, level in events:
        if block in order:
            order.remove(block)
            model = [each for each in model if each[1] != block]
        else:
            order.add(block, level)
            model.append((level, block))
        order.check()
    model.sort(key=lambda each: each[0])
    assert [order.num_below(level) for level in (-1, 0, 3)] == [
        sum(each < level for each, _ in model) for level in (-1, 0, 3)
    ]
    for _, block in model:
        assert order.first() == block
        assert order.pop_first() == block
    assert len(order) == 0
    with pytest.raises(ValueError, match="empty"):
        order.first()


def test_a_reader_that_missed_events_is_told_so_and_one_that_did_not_gets_the_rest():
    log = KvEventLog(3)
    assert log.since(0) == []
    for index in range(5):
        log.add(KvEventKind.STORED, CachedBlock(content_of((index,), is_full=True), Tier.POOL, index))
    assert log.seq == 5
    assert log.since(1) is None
    assert [event.seq for event in log.since(2)] == [3, 4, 5]
    assert log.since(5) == []
    assert log.since(6) is None, "a number of another life"
    log.add(KvEventKind.STORED, CachedBlock(content_of((9,)), Tier.POOL, 9))
    assert log.seq == 5, "a partial block is nobody else's business"


def test_a_content_that_moves_to_the_host_and_back_is_told_each_time():
    cache = PrefixCache(num_host_blocks=1)
    content = content_of((1, 2), is_full=True)
    cache.insert(4, content)
    cache.mark_idle(4)
    assert cache.evict() == (4, 0)
    cache.pin_host(0)
    cache.restore(0, 3)
    cache.forget(3)
    kinds = [(event.kind, event.tier) for event in cache.events.since(0)]
    stored, removed = KvEventKind.STORED, KvEventKind.REMOVED
    assert kinds == [(stored, Tier.POOL), (stored, Tier.HOST), (stored, Tier.POOL), (removed, Tier.POOL)]
    cache.check()


def test_a_host_block_is_given_up_for_something_worth_as_much_and_for_nothing_worth_less():
    cache = PrefixCache(num_host_blocks=1)
    kept, other, third = (content_of((each, 2), is_full=True) for each in range(3))
    for block, content in enumerate((kept, other, third)):
        cache.insert(block, content)
    cache.set_level([kept.name], 1)
    cache.mark_idle(1)
    assert cache.evict() == (1, 0)
    cache.mark_idle(0)
    assert cache.evict() == (0, 0)
    assert cache.find(other.name) is None
    cache.mark_idle(2)
    assert cache.evict() == (2, None), "the host keeps what is worth more"
    assert cache.find(kept.name).tier is Tier.HOST
    assert cache.find(third.name) is None
    cache.check()
