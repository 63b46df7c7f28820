"""Which sizes of steps are captured: a graph has those it was captured with, and a step takes the next larger one."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

_FINE, _CUTS = 8, 4
"""Up to so many sequences sizes double; from there on every doubling is cut into so many steps, of 8 at least."""
_FIRST_CONTEXT, _CONTEXT_FACTOR = 4096, 4


@dataclass(frozen=True, slots=True)
class GraphKey:
    """What a graph is captured for."""

    sequences: int
    queries: int
    """Rows of each sequence: 1, or more where drafts are verified."""
    context: int
    """Most positions of a sequence. It bounds how attention is launched and changes no result."""

    @property
    def rows(self) -> int:
        return self.sequences * self.queries


@dataclass(frozen=True, slots=True)
class Buckets:
    """Sizes in ascending order; the last of each is the largest there is."""

    sequences: tuple[int, ...]
    contexts: tuple[int, ...]
    queries: tuple[int, ...] = (1,)
    """Rows of each sequence: a step in which all have so many is captured, and no other."""

    @classmethod
    def up_to(cls, max_num_seqs: int, max_model_len: int, verify_rows: int | None = None) -> Buckets:
        """A step is at most a quarter larger than what is in it from 8 sequences on. `verify_rows`: rows of a sequence
        whose drafts are verified, one more than there are drafts; None where nobody drafts."""
        queries = (1,) if verify_rows is None else (1, verify_rows)
        return cls(_sizes(max_num_seqs), _contexts(max_model_len), queries)

    @property
    def largest(self) -> GraphKey:
        return GraphKey(self.sequences[-1], self.queries[-1], self.contexts[-1])

    def key(self, sequences: int, queries: int, context: int) -> GraphKey | None:
        """The smallest that fits; None where none does."""
        if sequences > self.sequences[-1] or queries not in self.queries or context > self.contexts[-1]:
            return None
        return GraphKey(_at_least(self.sequences, sequences), queries, _at_least(self.contexts, context))

    def all(self) -> list[GraphKey]:
        """Those of most rows first, of these those of the longest contexts: the first needs most memory."""
        return self._keys(self.contexts)

    def common(self) -> list[GraphKey]:
        """Those worth capturing before the first request, in that order: any number of sequences of the shortest
        contexts, and `largest`, in whose memory all others find room. The rest is captured when it first comes up."""
        keys = self._keys(self.contexts[:1])
        return keys if self.largest in keys else [self.largest, *keys]

    def _keys(self, contexts: tuple[int, ...]) -> list[GraphKey]:
        keys = [
            GraphKey(size, rows, context) for size in self.sequences for rows in self.queries for context in contexts
        ]
        return sorted(keys, key=lambda key: (key.rows, key.sequences, key.context), reverse=True)


def _sizes(largest: int) -> tuple[int, ...]:
    sizes, size = [], 1
    while size < largest:
        sizes.append(size)
        octave = 1 << (size.bit_length() - 1)
        size += octave if size < _FINE else max(_FINE, octave // _CUTS)
    return (*sizes, largest)


def _contexts(longest: int) -> tuple[int, ...]:
    sizes, size = [], _FIRST_CONTEXT
    while size < longest:
        sizes.append(size)
        size *= _CONTEXT_FACTOR
    return (*sizes, longest)


def _at_least(sizes: tuple[int, ...], wanted: int) -> int:
    return sizes[bisect_left(sizes, wanted)]
