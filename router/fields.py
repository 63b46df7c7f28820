"""Which request fields exist: served, known but not served, and accepted without effect."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wire.errors import ErrorCode, SpliceError

SAMPLING_FIELDS = frozenset(
    {
        "max_tokens",
        "min_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
        "seed",
        "stop",
        "stop_token_ids",
        "ignore_eos",
        "include_stop_str_in_output",
        "skip_special_tokens",
        "typical_p",
        "allowed_token_ids",
        "bad_words",
        "bad_words_ids",
        "prompt_logprobs",
        "n",
        "best_of",
        "use_beam_search",
        "beam_width",
        "length_penalty",
        "early_stopping",
    }
)
_STREAM_FIELDS = frozenset({"model", "stream", "stream_options"})
_HARMLESS = frozenset({"user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier"})
_GUIDED: dict[str, tuple[Any, ...]] = {
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "grammar": (),
}


@dataclass(frozen=True, slots=True)
class FieldTable:
    """The fields of one endpoint. `unsupported` maps a name to the values that ask for nothing and pass."""

    served: frozenset[str]
    unsupported: Mapping[str, tuple[Any, ...]]

    def check(self, body: Mapping[str, Any]) -> None:
        """Raises unsupported_parameter or unknown_field naming the first offender."""
        for name, value in body.items():
            if name in self.served or name in _HARMLESS:
                continue
            if name in self.unsupported:
                if value is None or value in self.unsupported[name]:
                    continue
                raise SpliceError(
                    ErrorCode.UNSUPPORTED_PARAMETER,
                    f"{name!r} is not supported by this server; leave it out",
                    param=name,
                )
            close = difflib.get_close_matches(name, [*self.served, *self.unsupported, *_HARMLESS], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise SpliceError(ErrorCode.UNKNOWN_FIELD, f"unknown field {name[:64]!r}{hint}", param=name[:64])


CHAT_FIELDS = FieldTable(
    served=SAMPLING_FIELDS | _STREAM_FIELDS | {"messages", "max_completion_tokens", "logprobs", "top_logprobs"},
    unsupported={
        **_GUIDED,
        "tools": ([],),
        "tool_choice": ("none",),
        "parallel_tool_calls": (True, False),  # of no tools
        "functions": ([],),
        "function_call": ("none",),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "reasoning_effort": (),
        "verbosity": (),
        "web_search_options": (),
        "chat_template": (),
        "chat_template_kwargs": ({},),
        "continue_final_message": (False,),
        "add_generation_prompt": (True,),
        "cache_salt": (),
        "priority": (0,),
    },
)
COMPLETION_FIELDS = FieldTable(
    served=SAMPLING_FIELDS | _STREAM_FIELDS | {"prompt", "logprobs", "echo"},
    unsupported={
        **_GUIDED,
        "suffix": ("",),
        "response_format": ({"type": "text"},),
        "prompt_embeds": (),
        "truncate_prompt_tokens": (),
        "cache_salt": (),
        "priority": (0,),
    },
)
