"""Server-sent events out of a byte stream that may be cut anywhere."""

from __future__ import annotations

from wire.errors import ErrorCode, SpliceError

MAX_LINE_BYTES = 16 << 20


class EventParser:
    """Turns chunks into the `data` of complete events (WHATWG HTML, section 9.2.6, without a lone CR as line end).

    Comments and fields other than `data` are passed over. What follows the last empty line is no event yet.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """Events that `chunk` completes. Raises SpliceError for a line longer than `MAX_LINE_BYTES`."""
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > MAX_LINE_BYTES:
            raise SpliceError(
                ErrorCode.INTERNAL_ERROR, f"the server sent a line of more than {MAX_LINE_BYTES} bytes; is it SSE?"
            )
        events: list[bytes] = []
        for ended in lines:
            line = ended.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        return events
