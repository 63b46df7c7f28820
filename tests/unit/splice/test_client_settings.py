"""What the terminal asks of a server: what was said, and nothing the server would decide alike."""

from __future__ import annotations

import pytest

from router.fields import CHAT_FIELDS, COMPLETION_FIELDS
from splice.settings.commands import ClientSettings
from splice.settings.resolve import resolve


def asked(**flags: str) -> dict[str, object]:
    return resolve(ClientSettings, flags=flags, environment={}, config=None, known_elsewhere={}).settings.sampling()


def test_only_what_was_said_is_sent() -> None:
    assert asked() == {"max_tokens": 256, "temperature": 0.0, "top_p": 1.0, "seed": None}
    said = asked(top_k="5", stop="END,###", repetition_penalty="1.2")
    assert (said["top_k"], said["stop"], said["repetition_penalty"]) == (5, ["END", "###"], 1.2)
    assert "min_p" not in said


def test_every_flag_is_a_field_that_both_endpoints_serve() -> None:
    flags = {
        "top_k": "5",
        "min_p": "0.1",
        "typical_p": "0.9",
        "repetition_penalty": "1.1",
        "frequency_penalty": "0.5",
        "presence_penalty": "-0.5",
        "stop": "x",
        "bad_words": "y",
    }
    said = asked(**flags)
    assert flags.keys() <= said.keys()
    for table in (CHAT_FIELDS, COMPLETION_FIELDS):
        table.check(said)


@pytest.mark.parametrize("flag", ["top_k", "min_p", "typical_p", "frequency_penalty"])
def test_values_out_of_range_are_refused_before_anything_is_sent(flag: str) -> None:
    with pytest.raises(Exception, match="expected"):
        asked(**{flag: "-9"})
