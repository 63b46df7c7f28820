"""Typed access to a file's metadata: a JSON object or GGUF's key-value pairs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from engine.formats.bad_file import DOWNLOAD_AGAIN, bad_file
from wire.errors import SpliceError

_Default = TypeVar("_Default")
_CORRECT_IT = "correct the field or use another file"


@dataclass(frozen=True, slots=True)
class Fields:
    """Key-value pairs of one file.

    Every getter raises SpliceError naming file, key and value on the wrong type. A key that is absent or null takes
    the default in the `_or` getters and is an error in the others.
    """

    path: Path
    values: Mapping[str, Any]

    def integer(self, key: str) -> int:
        return self._present(key, self.integer_or(key, None), "an integer")

    def integer_or(self, key: str, default: _Default) -> int | _Default:
        value = self.values.get(key)
        if value is None:
            return default
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise self.wrong(key, "an integer")

    def number(self, key: str) -> float:
        return self._present(key, self.number_or(key, None), "a number")

    def number_or(self, key: str, default: _Default) -> float | _Default:
        value = self.values.get(key)
        if value is None:
            return default
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        raise self.wrong(key, "a finite number")

    def boolean_or(self, key: str, default: _Default) -> bool | _Default:
        value = self.values.get(key)
        if value is None:
            return default
        if isinstance(value, bool):
            return value
        raise self.wrong(key, "true or false")

    def string(self, key: str) -> str:
        return self._present(key, self.string_or(key, None), "a string")

    def string_or(self, key: str, default: _Default) -> str | _Default:
        value = self.values.get(key)
        if value is None:
            return default
        if isinstance(value, str):
            return value
        raise self.wrong(key, "a string")

    def array(self, key: str) -> list[Any]:
        value = self._present(key, self.values.get(key), "a list")
        if isinstance(value, list):
            return value
        raise self.wrong(key, "a list")

    def section(self, key: str) -> Fields:
        """The object under `key`; empty when absent."""
        value = self.values.get(key)
        if value is None:
            return Fields(self.path, {})
        if isinstance(value, dict):
            return Fields(self.path, value)
        raise self.wrong(key, "an object")

    def wrong(self, key: str, expected: str) -> SpliceError:
        """The error for a field whose value cannot be used."""
        return bad_file(self.path, f"field {key!r} is {_short(self.values.get(key))}, expected {expected}", _CORRECT_IT)

    def _present(self, key: str, value: _Default | None, expected: str) -> _Default:
        if value is None:
            raise bad_file(self.path, f"field {key!r} is missing, expected {expected}", DOWNLOAD_AGAIN)
        return value


def read_json_object(path: Path) -> Fields:
    """A JSON file holding one object. Raises SpliceError when it is unreadable or something else."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise bad_file(path, f"not readable as JSON ({error})", DOWNLOAD_AGAIN) from error
    if not isinstance(values, dict):
        raise bad_file(path, f"holds a JSON {type(values).__name__}, expected an object", DOWNLOAD_AGAIN)
    return Fields(path, values)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
