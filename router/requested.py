"""The one validator of every front door: what comes out of here is safe to send to a worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from router.beam_fields import read_beam
from router.token_fields import (
    read_allowed_token_ids,
    read_bad_words,
    read_bad_words_ids,
    read_logit_bias,
    read_stop_token_ids,
    read_stops,
)
from router.validate import MAX_CHOICES, MAX_TOP_LOGPROBS, flag, integer, invalid, number
from wire.errors import ErrorCode, SpliceError
from wire.model_card import ModelCard
from wire.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Requested:
    """Sampling as the client asked for it, checked; None where the client left it to us."""

    max_tokens: int | None
    """0 scores the prompt and answers nothing."""
    seed: int | None
    n: int
    """Choices to return."""
    best_of: int
    """Choices to generate; the `n` with the highest mean log probability are returned."""
    stop: tuple[str, ...]
    include_stop: bool
    skip_special_tokens: bool
    bad_words: tuple[str, ...]
    """Texts not to be in the answer, beside the token sequences of `base`."""
    logprobs: int | None
    base: SamplingParams
    """Everything that needs neither the prompt's length nor a drawn seed nor the tokenizer."""

    @property
    def ranks(self) -> bool:
        """Not every choice generated is returned."""
        return self.best_of > self.n

    @property
    def num_runs(self) -> int:
        """Requests that workers see for each prompt."""
        return 1 if self.base.beam is not None else self.best_of


def read_sampling(
    body: Mapping[str, Any],
    card: ModelCard,
    *,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
    stream: bool = False,
    may_score_only: bool = False,
) -> Requested:
    """Checks the sampling fields of `body`; raises invalid_request naming field, value and range.

    `may_score_only`: `max_tokens` 0 is allowed, which asks for the prompt's own log probabilities alone.
    """
    max_tokens_field = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    max_tokens = integer(body, max_tokens_field, 0 if may_score_only else 1, 2**31 - 1)
    min_tokens = integer(body, "min_tokens", 0, 2**31 - 1) or 0
    if max_tokens is not None and min_tokens > max_tokens:
        raise invalid("min_tokens", f"{min_tokens} exceeds {max_tokens_field} {max_tokens}")
    n = integer(body, "n", 1, MAX_CHOICES) or 1
    stop = read_stops(body.get("stop"))
    beam = read_beam(body, n, stop)
    best_of = integer(body, "best_of", 1, MAX_CHOICES) or n
    if best_of < n:
        raise invalid("best_of", f"{best_of} is less than n = {n}, the number of choices asked for")
    if best_of > n and stream:
        raise invalid("best_of", "choices are compared when they are complete: stream needs best_of = n")
    if prompt_logprobs is not None and stream:
        raise invalid("prompt_logprobs", "log probabilities of the prompt are not streamed; leave out stream")
    base = SamplingParams(
        max_tokens=0,
        min_tokens=min_tokens,
        temperature=_or(number(body, "temperature", 0.0, 2.0), 1.0) if beam is None else 0.0,
        top_p=_or(number(body, "top_p", 0.0, 1.0, above=True), 1.0),
        top_k=_top_k(body, card.vocab_size),
        min_p=_or(number(body, "min_p", 0.0, 1.0), 0.0),
        typical_p=_or(number(body, "typical_p", 0.0, 1.0, above=True), 1.0),
        repetition_penalty=_or(number(body, "repetition_penalty", 0.0, 2.0, above=True), 1.0),
        frequency_penalty=_or(number(body, "frequency_penalty", -2.0, 2.0), 0.0),
        presence_penalty=_or(number(body, "presence_penalty", -2.0, 2.0), 0.0),
        logit_bias=read_logit_bias(body.get("logit_bias"), card.vocab_size),
        allowed_token_ids=read_allowed_token_ids(body.get("allowed_token_ids"), card.vocab_size),
        bad_words=read_bad_words_ids(body.get("bad_words_ids"), card.vocab_size),
        stop_token_ids=read_stop_token_ids(body.get("stop_token_ids"), card.vocab_size),
        ignore_eos=flag(body, "ignore_eos"),
        logprobs=0 if logprobs is None and best_of > n else logprobs,
        prompt_logprobs=prompt_logprobs,
        beam=beam,
    )
    return Requested(
        max_tokens=max_tokens,
        seed=_seed(body),
        n=n,
        best_of=best_of,
        stop=stop,
        include_stop=flag(body, "include_stop_str_in_output"),
        skip_special_tokens=flag(body, "skip_special_tokens", default=True),
        bad_words=read_bad_words(body.get("bad_words")),
        logprobs=logprobs,
        base=base,
    )


def read_prompt_logprobs(body: Mapping[str, Any]) -> int | None:
    return integer(body, "prompt_logprobs", 0, MAX_TOP_LOGPROBS)


def complete(
    requested: Requested,
    card: ModelCard,
    num_prompt_tokens: int,
    *,
    limit: int,
    draw_seed: Callable[[], int],
    where: str,
    bad_words: tuple[tuple[int, ...], ...] = (),
) -> SamplingParams:
    """Fills in what depends on the prompt. `limit`: most tokens of prompt and answer together. `bad_words`: the texts
    the client named, as token sequences.

    Raises context_length_exceeded when they can never fit, naming `where` the prompt came from or `max_tokens`.
    """
    if num_prompt_tokens == 0:
        raise SpliceError(ErrorCode.INVALID_REQUEST, "the prompt is empty; give at least one token", param=where)
    room = limit - num_prompt_tokens
    # A worker draws at least one token, which nobody sees where none was asked for.
    wanted = max(requested.max_tokens, 1) if requested.max_tokens is not None else room
    if room < 1 or wanted > room:
        asked = f" and {requested.max_tokens} of answer" if requested.max_tokens is not None else ""
        raise SpliceError(
            ErrorCode.CONTEXT_LENGTH_EXCEEDED,
            f"{num_prompt_tokens} tokens of prompt{asked} exceed the context of {card.name!r}, {limit} tokens; "
            "shorten the prompt or lower max_tokens",
            param=where if room < 1 else "max_tokens",
        )
    base = requested.base
    if base.min_tokens > wanted:
        raise invalid("min_tokens", f"{base.min_tokens} exceeds the {wanted} tokens of context that are left")
    return msgspec.structs.replace(
        base,
        max_tokens=wanted,
        seed=requested.seed if requested.seed is not None else draw_seed(),
        bad_words=base.bad_words + bad_words,
    )


def _seed(body: Mapping[str, Any]) -> int | None:
    """Signed or unsigned 64 bits; a negative seed names the same bits."""
    seed = integer(body, "seed", -(2**63), 2**64 - 1)
    return None if seed is None else seed % 2**64


def _top_k(body: Mapping[str, Any], vocab_size: int) -> int:
    """0 and -1 both turn it off, as users of other engines write it; more than the vocabulary is the vocabulary."""
    top_k = integer(body, "top_k", -1, 2**31 - 1) or 0
    return min(max(top_k, 0), vocab_size)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
