"""The result file: everything that was sent, seen and used, so that any figure can be computed again from it."""

from __future__ import annotations

import gzip
from pathlib import Path

import msgspec

from splice.bench.fingerprint import Environment
from splice.bench.resources import Resources
from splice.bench.sample import RequestSample
from splice.bench.summary import Summary
from splice.bench.workload import Workload
from splice.settings.resolve import suggestion
from wire.errors import ErrorCode, SpliceError

SCHEMA = 1


class StartFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One start of a server, in seconds after its process was made."""

    ready_s: float
    """It answered its readiness path."""
    first_token_s: float
    """The first token of the first request came."""


class ServerIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """Which server, started how."""

    name: str
    model: str
    dialect: str
    command: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    version: str | None = None
    model_digest: str | None = None
    """Of the file or directory it was given."""


class Repeat(msgspec.Struct, frozen=True, kw_only=True):
    """One measured run."""

    number: int
    """Repeats of the same number got the same prompts, on every server."""
    began: str
    """UTC, ISO 8601."""
    resources: Resources
    summary: Summary
    samples: tuple[RequestSample, ...]
    beside: tuple[RequestSample, ...] = ()
    """Of the workload that ran beside it."""


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """All repeats of one workload on one server."""

    server: ServerIdentity
    workload: Workload
    workload_digest: str
    repeats: tuple[Repeat, ...]
    starts: tuple[StartFigures, ...] = ()


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One file."""

    schema: int = SCHEMA
    began: str
    seed: int
    environment: Environment
    series: tuple[Series, ...]

    def servers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(series.server.name for series in self.series))


def write_result(result: Result, path: Path) -> None:
    """JSON, compressed if the name ends in `.gz`."""
    raw = msgspec.json.encode(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)


def read_result(path: Path) -> Result:
    """Raises SpliceError(bad_setting) for a file that is not there or not a result of this schema."""
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise SpliceError(ErrorCode.BAD_SETTING, f"cannot read {path}: {reason}", param="result") from None
    try:
        schema = msgspec.json.decode(raw, type=_SchemaOnly).schema
        if schema != SCHEMA:
            raise SpliceError(
                ErrorCode.BAD_SETTING, f"{path} has schema {schema}, this version reads {SCHEMA}", param="result"
            )
        return msgspec.json.decode(raw, type=Result)
    except msgspec.DecodeError as error:
        raise SpliceError(
            ErrorCode.BAD_SETTING, f"{path} is no result of `splice bench`: {error}", param="result"
        ) from None


class _SchemaOnly(msgspec.Struct):
    schema: int


def select(result: Result, server: str | None, origin: str) -> tuple[Series, ...]:
    """The series of one server. Raises SpliceError(bad_setting) unless there is exactly one of that name."""
    names = result.servers()
    if server is None and len(names) == 1:
        return result.series
    if server not in names:
        asked = f"no server {server!r}{suggestion(server, names)}" if server else "several servers"
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            f"{origin} holds {asked}; write {origin}#NAME with one of: {', '.join(names)}",
            param="result",
        )
    return tuple(series for series in result.series if series.server.name == server)
