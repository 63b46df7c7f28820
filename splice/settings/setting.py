"""One setting: a dataclass field that knows its flag, its help text and how text becomes its value."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ENVIRONMENT_PREFIX = "SPLICE_"
_KEY = "splice"


@dataclass(frozen=True, slots=True)
class Setting:
    """What a command line needs to know about one field of a settings class."""

    name: str
    default: object
    parse: Callable[[str], object]
    help: str
    group: str
    metavar: str
    is_switch: bool
    secret: bool

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return ENVIRONMENT_PREFIX + self.name.upper()


@dataclass(frozen=True, slots=True)
class _Meta:
    parse: Callable[[str], object]
    help: str
    group: str
    metavar: str
    is_switch: bool
    secret: bool


def setting(  # Any: the value goes into a field of whatever type
    default: object,
    parse: Callable[[str], object],
    text: str,
    *,
    group: str,
    metavar: str = "",
    is_switch: bool = False,
    secret: bool = False,
) -> Any:
    """A dataclass field with everything the command line, the file and the environment need."""
    meta = _Meta(parse, text, group, metavar, is_switch, secret)
    return dataclasses.field(default=default, metadata={_KEY: meta})


def settings_of(settings_class: type) -> dict[str, Setting]:
    """All settings of a class by name, in the order in which they are declared."""
    found = {}
    for field in dataclasses.fields(settings_class):
        meta: _Meta = field.metadata[_KEY]
        found[field.name] = Setting(
            field.name, field.default, meta.parse, meta.help, meta.group, meta.metavar, meta.is_switch, meta.secret
        )
    return found
