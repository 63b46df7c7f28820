"""Recorded request streams: one JSON object per line."""

from __future__ import annotations

from pathlib import Path

import msgspec

from wire.errors import ErrorCode, SpliceError


class TracedRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line: `{"timestamp": 12.5, "input_length": 512, "output_length": 64, "hash_ids": [7, 8]}`.

    The names are those of the published Mooncake traces (their timestamps are milliseconds: `unit = "ms"` in the
    workload). `hash_ids` name the prompt's leading blocks: equal ids mean equal tokens, which is how shared prefixes
    are recorded without recording anybody's text.
    """

    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()


def read_trace(path: Path) -> tuple[TracedRequest, ...]:
    """Raises SpliceError(bad_setting) naming the first line that is wrong."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SpliceError(
            ErrorCode.BAD_SETTING, f"cannot read the trace {path}: {error.strerror}", param="trace"
        ) from None
    found: list[TracedRequest] = []
    decoder = msgspec.json.Decoder(TracedRequest)
    for number, line in enumerate(raw.splitlines(), 1):
        if not line.strip():
            continue
        try:
            request = decoder.decode(line)
        except msgspec.DecodeError as error:
            raise _wrong(path, number, str(error)) from None
        if problem := _problem(request, found):
            raise _wrong(path, number, problem)
        found.append(request)
    if not found:
        raise SpliceError(ErrorCode.BAD_SETTING, f"the trace {path} holds no request", param="trace")
    return tuple(found)


def _problem(request: TracedRequest, before: list[TracedRequest]) -> str | None:
    if request.input_length < 1 or request.output_length < 1:
        return "lengths must be at least 1"
    if before and request.timestamp < before[-1].timestamp:
        return f"timestamp {request.timestamp} comes before that of the line above; sort the file"
    return None


def _wrong(path: Path, number: int, problem: str) -> SpliceError:
    return SpliceError(ErrorCode.BAD_SETTING, f"{path}, line {number}: {problem}", param="trace")
