"""Prompts of exact length, drawn from a seed: ids as they are, or text that tokenises to as many tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from tokenizers import Tokenizer

from splice.bench.workload import MultiTurn, RandomPrompt, SharedPrefix, TracedPrompt, Workload
from wire.errors import ErrorCode, SpliceError

_PREFIX, _BLOCK = 1, 2
"""Purposes of a draw, beside which the request's own index is 0: their streams never meet."""
_TEXT = (
    "the river moves past old stones and every boat that crosses it carries bread salt wool or letters from people who "
    "left before winter came over these hills while children count birds above the mill and ask why water never stops"
)
_WORDS = _TEXT.split()
_ATTEMPTS = 64

TextOf = Callable[[int, Sequence[int]], str]
"""(number of tokens, seed) to a text of precisely that many tokens."""


def prompt_ids(workload: Workload, index: int, seed: tuple[int, ...]) -> list[int]:
    """Token ids of request `index`. The same (workload, index, seed) gives the same ids, on any machine."""
    match workload.prompt:
        case RandomPrompt(tokens) | MultiTurn(tokens):
            return _draw(workload, tokens, (*seed, 0, index))
        case SharedPrefix(prefix_tokens, tokens, prefixes):
            prefix = _draw(workload, prefix_tokens, (*seed, _PREFIX, index % prefixes))
            return prefix + _draw(workload, tokens, (*seed, 0, index))
        case TracedPrompt(block_tokens):
            line = workload.trace[index]
            ids: list[int] = []
            for name in line.hash_ids[: line.input_length // block_tokens]:
                ids += _draw(workload, block_tokens, (*seed, _BLOCK, name))
            return ids + _draw(workload, line.input_length - len(ids), (*seed, 0, index))


def output_length(workload: Workload, index: int) -> int:
    """Tokens the answer to request `index` must have."""
    return workload.trace[index].output_length if isinstance(workload.prompt, TracedPrompt) else workload.output_tokens


def prompt_text(workload: Workload, index: int, seed: tuple[int, ...], text_of: TextOf) -> str:
    """The same as text. A shared prefix is one text, so its tokens are shared up to the seam at most."""
    match workload.prompt:
        case SharedPrefix(prefix_tokens, tokens, prefixes):
            prefix = text_of(prefix_tokens, (*seed, _PREFIX, index % prefixes))
            return prefix + text_of(tokens, (*seed, 0, index))
        case RandomPrompt(tokens) | MultiTurn(tokens):
            return text_of(tokens, (*seed, 0, index))
        case TracedPrompt():
            raise ValueError("a trace's prompts are ids: the workload was not checked")


def text_maker(tokenizer: Tokenizer) -> TextOf:
    """Texts of words, each beginning with a space, that tokenise to exactly as many tokens as asked for."""

    def text_of(tokens: int, seed: Sequence[int]) -> str:
        for attempt in range(_ATTEMPTS):
            generator = np.random.default_rng((*seed, attempt))
            words = [_WORDS[i] for i in generator.integers(0, len(_WORDS), tokens)]
            text = "".join(f" {word}" for word in words)
            ids = tokenizer.encode(text, add_special_tokens=False).ids[:tokens]
            shortened = tokenizer.decode(ids, skip_special_tokens=False)
            shortened = shortened if shortened.startswith(" ") else f" {shortened}"
            if len(tokenizer.encode(shortened, add_special_tokens=False).ids) == tokens:
                return shortened
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            f"no text of exactly {tokens} tokens was found with this tokenizer; use form = 'ids'",
            param="tokenizer",
        )

    return text_of


def _draw(workload: Workload, count: int, seed: tuple[int, ...]) -> list[int]:
    low, high = workload.token_ids
    drawn: list[int] = np.random.default_rng(seed).integers(low, high, count).tolist()
    return drawn
