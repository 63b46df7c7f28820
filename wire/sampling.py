"""Sampling parameters and finish reasons as plain data."""

from __future__ import annotations

from enum import IntEnum

import msgspec


class FinishReason(IntEnum):
    """Why a request ended; values equal those of the wire enum."""

    NONE = 0
    STOP = 1
    LENGTH = 2
    CANCELLED = 3
    ERROR = 4

    @property
    def openai_name(self) -> str:
        return {1: "stop", 2: "length", 3: "cancelled", 4: "error"}[self.value]


class EarlyStopping(IntEnum):
    """When a beam search ends; values equal those of the wire enum."""

    FALSE = 1
    """When the best running prefix, scored at its present length, cannot enter the best answers."""
    TRUE = 2
    """As soon as `width` answers are complete."""
    NEVER = 3
    """When no running prefix can enter the best answers at any length."""


class BeamSearch(msgspec.Struct, frozen=True, kw_only=True):
    """Deterministic search for the likeliest answers; the same rules as `transformers` has."""

    width: int
    num_answers: int
    """How many of the best are returned, at most `width`."""
    length_penalty: float = 1.0
    """An answer scores its log probability / its length ** length_penalty."""
    early_stopping: EarlyStopping = EarlyStopping.FALSE
    stop: tuple[str, ...] = ()
    """Texts that end an answer, as `wire.text.answer_text` finds them."""
    skip_special_tokens: bool = True
    """Special tokens add nothing to the text."""

    def num_candidates(self, num_ends: int) -> int:
        """Likeliest tokens of each prefix that are looked at: with `num_ends` tokens that end an answer, at least
        `width` of the best candidates of all prefixes do not."""
        return max(2, 1 + num_ends) * self.width


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How one choice of one request is drawn, complete: the router has filled in every default.

    The same parameters, tokens and seed give the same continuation on every worker: the generator is keyed by
    (`seed`, `choice`, position of the token drawn, purpose).
    """

    max_tokens: int
    """Most tokens to generate, counted from the end of the prompt (not of the attempt)."""
    min_tokens: int = 0
    """End-of-sequence and stop tokens are not drawn before this many tokens."""
    temperature: float = 1.0
    """0 is greedy; ties go to the lowest token id."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps every token."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Over prompt and output, as in CTRL (arXiv 1909.05858)."""
    frequency_penalty: float = 0.0
    """Over output only, times the count."""
    presence_penalty: float = 0.0
    """Over output only, once."""
    logit_bias: dict[int, float] = {}
    seed: int = 0
    """64 bits, unsigned."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    """Number of alternatives to report beside each chosen token; None reports nothing."""
    choice: int = 0
    typical_p: float = 1.0
    """1 keeps every token."""
    allowed_token_ids: tuple[int, ...] = ()
    """No other token is drawn; empty allows all."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Token sequences the answer does not contain: the last token of one is not drawn after its others."""
    prompt_logprobs: int | None = None
    """Number of alternatives to report beside each prompt token but the first; None reports nothing."""
    beam: BeamSearch | None = None
    """Instead of drawing tokens, search for the likeliest answers."""

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0


class TokenLogprobs(msgspec.Struct, frozen=True):
    """Natural logarithms of the model's own distribution, before temperature, penalties and filters."""

    logprob: float
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()
    rank: int = 0
    """Tokens strictly likelier than this one, plus one."""


class Beam(msgspec.Struct, frozen=True):
    """One answer of a beam search."""

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    """One per token, if asked for."""
    score: float
    finish: FinishReason
