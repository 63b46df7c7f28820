"""The engine's limits, checked once."""

from __future__ import annotations

from dataclasses import dataclass

from wire.errors import ErrorCode, SpliceError

MAX_SCORED_TOKENS = 128
"""See `EngineConfig.max_scored_tokens`; no worker is given more."""
_SIZES = ("num_blocks", "max_model_len", "block_tokens", "max_num_seqs", "max_num_batched_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Sizes one engine runs under. Raises SpliceError (bad_setting) where they contradict each other."""

    num_blocks: int
    max_model_len: int
    """Most tokens of one request, prompt and answer together."""
    block_tokens: int = 32
    max_num_seqs: int = 64
    """Most requests that hold a place in the batch: running, or reserved to run once their KV has arrived."""
    max_num_batched_tokens: int = 512
    """Most query tokens of one step."""
    max_step_ms: float = 250.0
    """Most milliseconds one step is predicted to take, one block of a prompt excepted."""
    max_mixed_step_ms: float = 180.0
    """The same for steps that compute prompts and give somebody a token: about the longest ITL beside prompts."""
    max_scored_tokens: int = MAX_SCORED_TOKENS
    """Most prompt tokens of one step that all want their logits, for `prompt_logprobs`; at least one block."""
    enable_prefix_caching: bool = True
    async_scheduling: bool = True
    """Schedules and launches a step while a device computes the one before, where the model can (`runs_ahead`)."""
    num_host_blocks: int = 0
    """Blocks outside the pool that keep what is evicted from it: swap space of preempted requests."""
    block_copy_cost: int = 1
    """Tokens that are computed in the time it takes to copy one block; fewer are computed rather than copied."""
    ageing_steps: int = 256
    """Steps of waiting that make up for one level of priority."""
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in (*_SIZES, "ageing_steps"):
            value = getattr(self, name)
            if value < 1:
                raise SpliceError(ErrorCode.BAD_SETTING, f"{name} is {value}, expected at least 1", param=name)
        for name in ("max_step_ms", "max_mixed_step_ms"):
            value = getattr(self, name)
            if not value > 0:
                raise SpliceError(ErrorCode.BAD_SETTING, f"{name} is {value}, expected more than 0", param=name)
        for name in ("num_host_blocks", "block_copy_cost"):
            value = getattr(self, name)
            if value < 0:
                raise SpliceError(ErrorCode.BAD_SETTING, f"{name} is {value}, expected 0 or more", param=name)
        if self.num_host_blocks and not self.enable_prefix_caching:
            raise SpliceError(
                ErrorCode.BAD_SETTING,
                f"num_host_blocks is {self.num_host_blocks}, but what is kept there is found by the prefix cache, "
                "which is switched off: switch it on, or keep no host blocks",
                param="num_host_blocks",
            )
        if self.blocks_for(self.max_model_len) > self.num_blocks:
            raise SpliceError(
                ErrorCode.BAD_SETTING,
                f"the KV pool holds {self.num_blocks * self.block_tokens} tokens, less than one request of "
                f"max_model_len {self.max_model_len}: lower max_model_len or give the pool more memory",
                param="max_model_len",
            )
        if self.max_scored_tokens < self.block_tokens:
            raise SpliceError(
                ErrorCode.BAD_SETTING,
                f"max_scored_tokens is {self.max_scored_tokens}, expected at least one block of {self.block_tokens}",
                param="max_scored_tokens",
            )
        needed = self.max_num_seqs - 1 + self.block_tokens
        if self.max_num_batched_tokens < needed:
            raise SpliceError(
                ErrorCode.BAD_SETTING,
                f"max_num_batched_tokens is {self.max_num_batched_tokens}, expected at least {needed}: one block of a "
                f"prompt beside {self.max_num_seqs - 1} decoding requests; raise it or lower max_num_seqs",
                param="max_num_batched_tokens",
            )

    @property
    def host_min_tokens(self) -> int:
        """Tokens a block must hold for copying it out and back to be cheaper than computing them again."""
        return 2 * self.block_copy_cost + 1

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold the KV of `num_tokens` tokens."""
        return -(-num_tokens // self.block_tokens)
