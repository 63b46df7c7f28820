"""Which token sequences spell a text that must not be in an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from wire.errors import ErrorCode, SpliceError


def bad_word_sequences(words: Iterable[str], encode: Callable[[str], Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Both spellings of each word, as a text begins with it and as it follows a blank, each sequence once.

    A model can still spell a word by tokens the tokenizer would not choose; only these sequences are kept out.
    """
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        for spelled in (word.lstrip(), " " + word.lstrip()):
            sequence = tuple(encode(spelled))
            if not sequence:
                raise SpliceError(
                    ErrorCode.INVALID_REQUEST, f"bad_words: {word[:64]!r} has no tokens", param="bad_words"
                )
            found[sequence] = None
    return tuple(found)
