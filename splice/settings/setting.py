"""One setting: a dataclass field that knows its flag, its help text and how text becomes its value."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
    named = partial(
        Setting,
        default=default,
        parse=parse,
        help=text,
        group=group,
        metavar=metavar,
        is_switch=is_switch,
        secret=secret,
    )
    return dataclasses.field(default=default, metadata={_KEY: named})


def settings_of(settings_class: type) -> dict[str, Setting]:
    """All settings of a class by name, in the order in which they are declared."""
    known = {field: field.metadata[_KEY](field.name) for field in dataclasses.fields(settings_class)}
    return {
        field.name: one if one.metavar else dataclasses.replace(one, metavar=_metavar(str(field.type)))
        for field, one in known.items()
    }


def _metavar(annotation: str) -> str:
    """`annotation` as it is written, such as `int | None`."""
    return {"int": "N", "float": "X", "tuple": "LIST"}.get(re.split(r"\W", annotation)[0], "TEXT")
