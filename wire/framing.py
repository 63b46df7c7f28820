"""Messages on a plain byte stream, each behind its length: 32 bits, little-endian."""

from __future__ import annotations

import struct

from wire.errors import ErrorCode, SpliceError

MAX_MESSAGE_BYTES = 64 << 20
LENGTH_BYTES = 4
_LENGTH = struct.Struct("<I")


def framed(message: bytes) -> bytes:
    """`message` as it goes onto the stream."""
    return _LENGTH.pack(len(message)) + message


class FrameReader:
    """Cuts a stream into messages again, however it arrives in pieces."""

    def __init__(self) -> None:
        self._partial = bytearray()
        """A message that has begun, with its length."""
        self._wanted = LENGTH_BYTES
        """Bytes of `_partial` needed to get any further."""

    def feed(self, data: bytes) -> list[bytes]:
        """Messages that `data` completes. Raises SpliceError (invalid_request) for one of more than 64 MiB."""
        if self._partial:
            self._partial += data
            if len(self._partial) < self._wanted:
                return []
            data = bytes(self._partial)
            self._partial.clear()
        elif len(data) - LENGTH_BYTES == int.from_bytes(data[:LENGTH_BYTES], "little"):
            return [data[LENGTH_BYTES:]]  # what nearly every piece is: one message, whole
        messages: list[bytes] = []
        start, available = 0, len(data)
        self._wanted = LENGTH_BYTES
        while available - start >= LENGTH_BYTES:
            (size,) = _LENGTH.unpack_from(data, start)
            if size > MAX_MESSAGE_BYTES:
                raise SpliceError(
                    ErrorCode.INVALID_REQUEST,
                    f"a message of {size} bytes was announced; expected at most {MAX_MESSAGE_BYTES}",
                )
            end = start + LENGTH_BYTES + size
            if end > available:
                self._wanted = end - start
                break
            messages.append(data[start + LENGTH_BYTES : end])
            start = end
        if start < available:
            self._partial += data[start:]
        return messages
