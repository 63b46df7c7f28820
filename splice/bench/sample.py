"""What a client saw of one request."""

from __future__ import annotations

import msgspec


class RequestSample(msgspec.Struct, frozen=True, kw_only=True):
    """Raw times of one request, in whole microseconds after it was due.

    In a closed loop a request is due when its stream is free, in an open loop when the arrival process says so: what it
    waits for a slow client or a full connection is part of its latency, never left out.
    """

    index: int
    due_us: int
    """After the beginning of the run."""
    sent_us: int
    """When the request's bytes were handed to the kernel, a new connection included."""
    first_us: int | None = None
    """When the first piece of text came; None if none did."""
    gaps_us: tuple[int, ...] = ()
    """Between consecutive pieces of text. A piece is one event with text; see `pieces_per_token` in the summary."""
    end_us: int
    """When the stream ended, for whatever reason."""
    prompt_tokens: int = 0
    """As the server counted."""
    cached_tokens: int = 0
    output_tokens: int = 0
    wanted_tokens: int
    finish: str | None = None
    text_digest: str = ""
    """16 hexadecimal digits over the answer's text: equal answers have equal digests."""
    error: str | None = None
    """None means: complete, with a finish reason and the end mark, and of the wanted length."""

    @property
    def last_us(self) -> int | None:
        """When the last piece of text came."""
        return None if self.first_us is None else self.first_us + sum(self.gaps_us)

    @property
    def tpot_us(self) -> float | None:
        """Time per output token after the first; None for answers of one token."""
        if self.first_us is None or self.output_tokens < 2:
            return None
        return sum(self.gaps_us) / (self.output_tokens - 1)
