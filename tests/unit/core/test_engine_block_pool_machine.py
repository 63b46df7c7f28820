"""Random owners over a small pool and a smaller host, with memory behind them: nobody ever reads what is not theirs."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from engine.blocks.block_copy import CopyKind
from engine.blocks.block_pool import BlockPool, BlockState, ListGenerations
from engine.blocks.cached_block import BlockContent, Tier
from wire.block_hash import ROOT, block_hash

BLOCKS, HOST_BLOCKS, SIZE = 9, 4, 4


@dataclass
class Owner:
    """A text of which the first `written` tokens are in the owner's blocks."""

    text: list[int]
    written: int
    is_reading: bool = False
    """Held or draining: it writes no more."""


def names_of(text):
    names = [ROOT]
    for start in range(0, len(text) - SIZE + 1, SIZE):
        names.append(block_hash(names[-1], text[start : start + SIZE]))
    return names[1:]


who = st.integers(0, 11)
has_owners = precondition(lambda machine: machine.asked)


class PoolMachine(RuleBasedStateMachine):
    """Makes every copy the pool asks for on lists of tokens, and compares them with what each name and owner means."""

    operations = 0

    def __init__(self):
        super().__init__()
        self.generations = ListGenerations(BLOCKS)
        self.pool = BlockPool(BLOCKS, self.generations, HOST_BLOCKS, host_min_tokens=2)
        self.device = [[None] * SIZE for _ in range(BLOCKS)]
        self.host = [[None] * SIZE for _ in range(HOST_BLOCKS)]
        self.asked = {}
        self.count = 0

    def _copy(self):
        for copy in self.pool.take_copies():
            source = self.host if copy.kind is CopyKind.IN else self.device
            dest = self.host if copy.kind is CopyKind.OUT else self.device
            dest[copy.dest] = list(source[copy.source])

    @rule(variant=st.integers(0, 2), length=st.integers(3, 20), spare=st.integers(0, 1))
    def open(self, variant, length, spare):
        """Texts of one variant begin alike; those of another leave the first one somewhere."""
        text = [(variant if index >= 3 * variant > 0 else 0) for index in range(length)]
        names = names_of(text)
        names = names[: self.pool.cache.num_known(names)]
        start = len(names) * SIZE
        nearest = self.pool.cache.nearest(names[-1] if names else ROOT, text[start : start + SIZE])
        lead, num_lead = nearest or (None, 0)
        num_new = -(-length // SIZE) - len(names) + spare
        if not num_new or not self.pool.can_open(names, num_new, lead):
            lead, num_lead = None, 0
        if not self.pool.can_open(names, num_new, lead):
            return
        self.count += 1
        self.pool.open(self.count, names, num_new, lead)
        self.asked[self.count] = Owner(text, start + num_lead)

    @has_owners
    @rule(who=who, parent_ends=st.booleans(), keep=st.integers(0, 20), token=st.integers(4, 6))
    def fork(self, who, parent_ends, keep, token):
        parent = self._pick(who)
        ours = self.asked[parent]
        if ours.is_reading:
            return
        keep = min(keep, ours.written)
        self.count += 1
        self.pool.fork(parent, self.count, -(-keep // SIZE))
        self.asked[self.count] = Owner([*ours.text[:keep], token], keep)
        if parent_ends:
            self._end(parent)

    @has_owners
    @rule(who=who, token=st.integers(0, 6))
    def fill(self, who, token):
        """Writes everything the owner was opened for, and some more."""
        ours = self.asked[self._pick(who)]
        self.write(who, max(1, len(ours.text) - ours.written + 2), token)

    @has_owners
    @rule(who=who, count=st.integers(1, 9), token=st.integers(0, 6))
    def write(self, who, count, token):
        """Writes the next tokens, first those the owner was opened for, as far as memory goes."""
        owner = self._pick(who)
        ours = self.asked[owner]
        for _ in range(0 if ours.is_reading else count):
            index, slot = divmod(ours.written, SIZE)
            if index == len(self.pool.table(owner)):
                if not self.pool.num_free:
                    return
                self.pool.extend(owner)
            if not self.pool.make_writable(owner, index):
                assert self.pool.num_free == 0
                return
            self._copy()
            if ours.written == len(ours.text):
                ours.text.append(token)
            self.device[self.pool.table(owner)[index]][slot] = ours.text[ours.written]
            ours.written += 1
            if slot == SIZE - 1:
                self._seal(owner, index, SIZE)

    def _seal(self, owner, index, num_tokens):
        text = self.asked[owner].text
        names = [ROOT, *names_of(text[: index * SIZE])]
        tokens = tuple(text[index * SIZE : index * SIZE + num_tokens])
        name = block_hash(names[index], tokens)
        self.pool.seal(owner, index, BlockContent(name, names[index], tokens, num_tokens == SIZE))

    @has_owners
    @rule(who=who, level=st.integers(0, 2))
    def keep(self, who, level):
        owner = self._pick(who)
        ours = self.asked[owner]
        self.pool.cache.set_level(names_of(ours.text[: ours.written]), level)

    @has_owners
    @rule(who=who, how=st.sampled_from(["release", "release", "seal", "seal", "seal", "hold", "drain", "distrust"]))
    def end(self, who, how):
        """Held and draining owners end when they are picked again."""
        owner = self._pick(who)
        ours = self.asked[owner]
        if how == "hold" and not ours.is_reading:
            ours.is_reading = True
            self.pool.hold(owner)
        elif how == "drain" and not ours.is_reading:
            self.pool.drain(owner)  # what others may read goes at once; what is left is nobody's to read
            self.asked[owner] = Owner([], 0, is_reading=True)
        else:
            index, rest = divmod(ours.written, SIZE)
            if how == "seal" and rest and self.pool.is_writable(owner, index):
                self._seal(owner, index, rest)
            if how == "distrust":
                self.pool.distrust(owner)
                assert not any(self.pool.cache.is_idle(block) for block in self.pool.table(owner))
                assert not any(block in self.pool.cache for block in self.pool.table(owner))
            self._end(owner)

    def _end(self, owner):
        del self.asked[owner]
        self.pool.release(owner)

    def _pick(self, who):
        return list(self.asked)[who % len(self.asked)]

    def _entries(self):
        return list(self.pool.cache._entries.values())

    @invariant()
    def books_balance(self):
        PoolMachine.operations += 1
        self._copy()
        self.pool.check()
        assert sum(self.pool.count(state) for state in BlockState) == BLOCKS

    @invariant()
    def nobody_loses_what_they_wrote(self):
        for owner, ours in self.asked.items():
            table = self.pool.table(owner)
            found = [self.device[table[place // SIZE]][place % SIZE] for place in range(ours.written)]
            assert found == ours.text[: ours.written]

    @invariant()
    def every_name_means_what_is_in_its_block(self):
        for entry in self._entries():
            memory = self.device if entry.tier is Tier.POOL else self.host
            tokens = entry.content.tokens
            assert tuple(memory[entry.block][: len(tokens)]) == tokens
            assert entry.content.name == block_hash(entry.content.parent, tokens)

    @invariant()
    def a_reader_of_the_events_knows_exactly_what_can_be_found(self):
        log, snapshot = self.pool.cache.events, self.pool.cache.snapshot()
        known = {}
        for event in log.since(0):
            if event.kind.value == "stored":
                known[event.name] = (event.name, event.parent, event.tier)
            else:
                del known[event.name]
        assert set(known.values()) == set(snapshot.blocks)
        assert snapshot.seq == log.seq

    def teardown(self):
        for owner in list(self.asked):
            self.pool.release(owner)
        self.pool.check()
        assert self.pool.num_free == BLOCKS


def test_ten_thousand_operations_on_the_pool_lose_leak_and_confuse_nothing():
    PoolMachine.operations = 0
    limits = settings(max_examples=240, stateful_step_count=50, deadline=None, derandomize=True)
    run_state_machine_as_test(PoolMachine, settings=limits)
    assert PoolMachine.operations >= 10_000
