"""Which servers take part in a contest, and how each is started: a TOML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from splice.bench.dialect import DIALECTS
from splice.settings.resolve import suggestion
from wire.errors import ErrorCode, SpliceError


class ServerEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[server]]` of a contest file."""

    name: str
    command: tuple[str, ...]
    """`{port}` is a free port."""
    url: str = "http://127.0.0.1:{port}"
    ready_path: str = "/v1/models"
    model: str
    """The name requests ask for."""
    dialect: str = "openai"
    environment: dict[str, str] = {}
    folder: str | None = None
    model_file: str | None = None
    """What it loads, for the digest in the result."""
    version_command: tuple[str, ...] = ()
    version: str | None = None
    start_timeout_s: float = 180.0
    stop_timeout_s: float = 30.0
    keep: bool = False
    """Started once for all rounds (slow starters); idle between its turns, its CPU use then counts as foreign."""
    workloads: tuple[str, ...] | None = None
    """Only these of the contest's workloads."""


class Contest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A contest file. `{name}` in any text of it is the value of that place."""

    server: tuple[ServerEntry, ...]
    places: dict[str, str] = {}
    """Where things are on this machine; `--place name=value` replaces one, so that the file itself names no machine."""


def load_contest(path: Path, only: Sequence[str], places: Mapping[str, str]) -> tuple[ServerEntry, ...]:
    """The file's servers, or those named by `only`; `places` win over the file's. Raises SpliceError(bad_setting)."""
    try:
        raw = path.read_text()
        known = msgspec.toml.decode(raw, type=_PlacesOnly).places
        for name, value in {**known, **places}.items():
            if name not in known:
                raise ValueError(
                    f"it has no place {name!r}{suggestion(name, known)}; it has {', '.join(known) or 'none'}"
                )
            raw = raw.replace(f"{{{name}}}", value)
        contest = msgspec.toml.decode(raw, type=Contest)
    except OSError as error:
        raise SpliceError(ErrorCode.BAD_SETTING, f"cannot read {path}: {error.strerror}", param="contest") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise SpliceError(ErrorCode.BAD_SETTING, f"{path}: {error}", param="contest") from None
    names = [entry.name for entry in contest.server]
    if not names or len(set(names)) != len(names) or not all(entry.command for entry in contest.server):
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            f"{path}: expected [[server]] entries with different names and a command each",
            param="contest",
        )
    for entry in contest.server:
        if entry.dialect not in DIALECTS:
            raise SpliceError(
                ErrorCode.BAD_SETTING,
                f"{path}: server {entry.name}: no dialect {entry.dialect!r}{suggestion(entry.dialect, DIALECTS)}; "
                f"known: {', '.join(DIALECTS)}",
                param="contest",
            )
    for name in only:
        if name not in names:
            raise SpliceError(
                ErrorCode.BAD_SETTING,
                f"{path} has no server {name!r}{suggestion(name, names)}; it has {', '.join(names)}",
                param="servers",
            )
    return tuple(entry for entry in contest.server if not only or entry.name in only)


class _PlacesOnly(msgspec.Struct):
    places: dict[str, str] = {}
