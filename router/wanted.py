"""What a request asks for, as far as its life cycle cares, and what each worker it visits is told of it."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from wire.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request asks for beside tokens one after another."""

    prompt_logprobs: bool = False
    """The worker that computes the prompt reports its log probabilities, and takes nothing from its cache for it."""
    beams: bool = False
    """Answers come all at once and at the end; tokens drawn on the way are none of the client's."""
    ends_at_once: bool = False
    """Nothing follows the first token, so that there is nothing to hand over."""

    @classmethod
    def by(cls, sampling: SamplingParams) -> Wanted:
        return cls(
            prompt_logprobs=sampling.prompt_logprobs is not None,
            beams=sampling.beam is not None,
            ends_at_once=sampling.max_tokens == 1,
        )


TOKENS = Wanted()
"""Tokens, and nothing beside."""


def for_prefill(sampling: SamplingParams, eos_token_ids: tuple[int, ...]) -> SamplingParams:
    """A beam search begins on the decode worker: of prefill it needs the likeliest first tokens, whichever they are."""
    if sampling.beam is None:
        return sampling
    ends = set(sampling.stop_token_ids) | (set() if sampling.ignore_eos else set(eos_token_ids))
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=0.0,
        ignore_eos=True,
        logprobs=max(sampling.beam.num_candidates(len(ends)), sampling.logprobs or 0),
        prompt_logprobs=sampling.prompt_logprobs,
    )


def for_reservation(sampling: SamplingParams) -> SamplingParams:
    """The prompt is computed elsewhere, and so are its log probabilities."""
    return msgspec.structs.replace(sampling, prompt_logprobs=None)
