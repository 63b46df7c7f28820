"""Which requests an engine refuses at once, because no amount of waiting would help."""

from __future__ import annotations

from engine.config import EngineConfig
from engine.scheduling.request import Request, RequestKind
from wire.errors import ErrorCode, SpliceError


def check_admissible(request: Request, config: EngineConfig, vocab_size: int) -> None:
    """Raises SpliceError (context_length_exceeded, invalid_request) naming what is wrong.

    The router has validated the request for the client; this protects the batch it would join.
    """
    prompt, total = request.num_prompt_tokens, request.num_tokens
    if not 1 <= prompt <= total:
        raise _invalid(
            f"num_prompt_tokens is {prompt}, expected 1 to {total}, the number of tokens", "num_prompt_tokens"
        )
    if prompt >= config.max_model_len:
        raise SpliceError(
            ErrorCode.CONTEXT_LENGTH_EXCEEDED,
            f"the prompt has {prompt} tokens; this model takes {config.max_model_len} with the answer, so at most "
            f"{config.max_model_len - 1}: shorten the prompt",
            param="prompt",
        )
    if total > config.max_model_len:
        raise _invalid(f"{total} tokens with those emitted before, max_model_len is {config.max_model_len}", "tokens")
    lowest, highest = min(request.tokens), max(request.tokens)
    if lowest < 0 or highest >= vocab_size:
        bad = lowest if lowest < 0 else highest
        raise _invalid(f"token id {bad} is outside the vocabulary of {vocab_size}", "tokens")
    if request.sampling.max_tokens < 1:
        raise _invalid(f"max_tokens is {request.sampling.max_tokens}, expected at least 1", "max_tokens")
    _check_branches(request, config)
    if request.sampling.prompt_logprobs is not None and request.kind is RequestKind.RESERVE:
        raise _invalid("prompt_logprobs are computed where the prompt is, not where it is decoded", "prompt_logprobs")
    if request.skip_tokens and request.kind is not RequestKind.PREFILL:
        raise _invalid("skip_tokens is for prefill alone: it says what the fetching side already holds", "skip_tokens")
    if request.skip_tokens % config.block_tokens or not 0 <= request.skip_tokens < total:
        raise _invalid(
            f"skip_tokens is {request.skip_tokens}, expected whole blocks of {config.block_tokens}, fewer than {total}",
            "skip_tokens",
        )


def _check_branches(request: Request, config: EngineConfig) -> None:
    """Branches that wait for each other must be able to run side by side.

    The whole blocks of their prompt count once where blocks are found by content: a branch shares them from its fork
    on, finds them again after a preemption, and where it computed them meanwhile, gives its copies up when nothing else
    moves (`Scheduler`).
    """
    branches = request.num_branches
    longest = min(request.num_prompt_tokens + request.sampling.max_tokens, config.max_model_len)
    shared = request.num_prompt_tokens // config.block_tokens if config.enable_prefix_caching else 0
    num_blocks = shared + branches * (config.blocks_for(longest - 1) - shared)
    if branches < 1 or branches > config.max_num_seqs:
        raise _invalid(
            f"num_branches is {branches}, expected 1 to {config.max_num_seqs}, the places in the batch", "num_branches"
        )
    if branches > 1 and num_blocks > config.num_blocks:
        raise _invalid(
            f"{branches} branches of up to {longest} tokens take {num_blocks} KV blocks and the pool has "
            f"{config.num_blocks}: ask for fewer branches or tokens",
            "num_branches",
        )
    beam = request.sampling.beam
    if beam is not None and request.kind is RequestKind.PREFILL:
        raise _invalid("beam search begins where it goes on; prefill is asked for the likeliest first tokens", "beam")
    if beam is not None and beam.stop and request.answer_text is None:
        raise _invalid("stop strings end beams by their text, and the request came without an answer_text", "stop")


def _invalid(message: str, param: str) -> SpliceError:
    return SpliceError(ErrorCode.INVALID_REQUEST, message, param=param)
