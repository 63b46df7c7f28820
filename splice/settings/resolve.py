"""Four layers of settings become one frozen object that knows where each value came from."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import yaml

from splice.settings.setting import ENVIRONMENT_PREFIX, Setting, settings_of
from wire.errors import ErrorCode, SpliceError

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Resolved(Generic[S]):
    """Settings and, by name, the origin of each value: `default`, `file.yaml`, `SPLICE_PORT` or `--port`."""

    settings: S
    origins: Mapping[str, str]


def resolve(
    settings_class: type[S],
    *,
    flags: Mapping[str, str],
    environment: Mapping[str, str],
    config: Path | None = None,
    known_elsewhere: Iterable[str] = (),
) -> Resolved[S]:
    """Builds the settings of one command.

    `flags` holds those given, by setting name; `environment` the `SPLICE_*` variables. `known_elsewhere` names settings
    of other commands: they may stand in the environment and in the file, which several commands share.
    Raises SpliceError(bad_setting) for an unknown key or a value that cannot be.
    """
    known = settings_of(settings_class)
    shared = set(known_elsewhere) | set(known)
    values: dict[str, object] = {}
    origins = dict.fromkeys(known, "default")

    def put(name: str, raw: object, origin: str) -> None:
        values[name] = _value(known[name], raw, origin)
        origins[name] = origin

    if config is not None:
        for key, raw in _read_yaml(config).items():
            name = key.replace("-", "_")
            if name not in shared:
                raise _unknown(key, f"in {config}", [other.replace("_", "-") for other in shared])
            if name in known:
                put(name, raw, str(config))
    for variable, raw in environment.items():
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if name not in shared:
            raise _unknown(variable, "in the environment", [ENVIRONMENT_PREFIX + other.upper() for other in shared])
        if name in known:
            put(name, raw, variable)
    for name, raw in flags.items():
        put(name, raw, known[name].flag)
    return Resolved(settings_class(**values), origins)


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean …?` or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _read_yaml(path: Path) -> dict[str, object]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpliceError(
            ErrorCode.BAD_SETTING, f"cannot read {path}: {error.strerror}; name an existing YAML file", param="config"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpliceError(ErrorCode.BAD_SETTING, f"{path} is not YAML: {error}", param="config") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise SpliceError(
            ErrorCode.BAD_SETTING, f"{path} must hold `setting: value` lines, one a setting", param="config"
        )
    return content


def _value(known: Setting, raw: object, origin: str) -> object:
    if isinstance(raw, bool):
        written = "true" if raw else "false"
    elif isinstance(raw, (list, tuple)):
        written = ",".join(str(part) for part in raw)
    elif isinstance(raw, (str, int, float)):
        written = str(raw)
    else:
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            f"{origin} gives {known.name} as {type(raw).__name__}; expected text, a number, true/false or a list",
            param=known.name,
        )
    try:
        return known.parse(written)
    except ValueError as error:
        shown = "that value" if known.secret else repr(written)
        given = f"{known.flag} {shown}" if origin == known.flag else f"{origin} gives {known.flag} {shown}"
        raise SpliceError(ErrorCode.BAD_SETTING, f"{given}: {error}", param=known.name) from None


def _unknown(key: str, where: str, known: Iterable[str]) -> SpliceError:
    return SpliceError(
        ErrorCode.BAD_SETTING,
        f"unknown setting {key} {where}{suggestion(key, known)} (`splice serve --help` lists them all)",
        param=key,
    )
