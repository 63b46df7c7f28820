"""Text to values. The same parsers read flags, the environment and whatever YAML gives as text.

Each raises ValueError saying what was expected; the caller adds which setting it was and where the value came from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?", re.IGNORECASE)
_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DEVICE = re.compile(r"cpu|cuda(:\d{1,2})?")
_YES, _NO = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


def text(raw: str) -> str:
    if not raw:
        raise ValueError("expected some text")
    return raw


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """Whole numbers in [low, high]."""
    limits = f"a whole number from {low} to {high}" if high is not None else f"a whole number of at least {low}"

    def parse(raw: str) -> int:
        try:
            value = int(raw.replace("_", ""))
        except ValueError:
            raise ValueError(f"expected {limits}") from None
        if value < low or (high is not None and value > high):
            raise ValueError(f"expected {limits}")
        return value

    return parse


def seconds(low: float) -> Callable[[str], float]:
    """Durations in seconds, at least `low`."""

    def parse(raw: str) -> float:
        try:
            value = float(raw.removesuffix("s"))
        except ValueError:
            raise ValueError(f"expected seconds, at least {low:g}") from None
        if not low <= value < float("inf"):
            raise ValueError(f"expected seconds, at least {low:g}")
        return value

    return parse


def number(low: float, high: float) -> Callable[[str], float]:
    """Finite numbers in [low, high]."""

    def parse(raw: str) -> float:
        try:
            value = float(raw)
        except ValueError:
            raise ValueError(f"expected a number from {low:g} to {high:g}") from None
        if not low <= value <= high:
            raise ValueError(f"expected a number from {low:g} to {high:g}")
        return value

    return parse


def size(raw: str) -> int:
    """Bytes: `512M`, `1.5GiB`, `1073741824`. K, M, G and T are powers of 1024."""
    match = _SIZE.fullmatch(raw.strip())
    value = int(float(match[1]) * 1024 ** _UNITS[match[2].lower()]) if match else 0
    if value <= 0:
        raise ValueError("expected a size such as 512M or 2G")
    return value


def size_text(num_bytes: int) -> str:
    """As `size` reads it: `512M`, with the largest unit that divides it."""
    exact = {unit: num_bytes // 1024**power for unit, power in _UNITS.items() if num_bytes % 1024**power == 0}
    unit = min(exact, key=exact.__getitem__) if num_bytes else ""
    return f"{exact[unit]}{unit.upper()}"


def switch(raw: str) -> bool:
    if raw.lower() in _YES:
        return True
    if raw.lower() in _NO:
        return False
    raise ValueError("expected true or false")


def choice(*allowed: str, aliases: Mapping[str, str] = MappingProxyType({})) -> Callable[[str], str]:
    """`aliases` are other spellings, each with what it stands for."""

    def parse(raw: str) -> str:
        if raw not in allowed and raw not in aliases:
            raise ValueError(f"expected one of {', '.join([*allowed, *aliases])}")
        return aliases.get(raw, raw)

    return parse


def device(raw: str) -> str:
    """`cpu`, or a GPU as torch names it: `cuda`, `cuda:1`."""
    if not _DEVICE.fullmatch(raw):
        raise ValueError("expected cpu, cuda or cuda:N")
    return raw


def choice_of_ints(*allowed: int) -> Callable[[str], int]:
    def parse(raw: str) -> int:
        return int(choice(*map(str, allowed))(raw))

    return parse


def name(raw: str) -> str:
    """A name that can be part of a path and of an etcd key."""
    if not _NAME.fullmatch(raw):
        raise ValueError(
            "expected 1 to 64 letters, digits, dots, dashes or underscores, beginning with a letter or digit"
        )
    return raw


def words(*allowed: str) -> Callable[[str], tuple[str, ...]]:
    """A comma-separated list, each word at most once; any word if `allowed` is empty."""

    def parse(raw: str) -> tuple[str, ...]:
        found = tuple(word.strip() for word in raw.split(",") if word.strip())
        unknown = [word for word in found if allowed and word not in allowed]
        if unknown or not found:
            expected = f"words from {', '.join(allowed)}" if allowed else "a comma-separated list"
            raise ValueError(f"expected {expected}" + (f", not {unknown[0]!r}" if unknown else ""))
        if len(set(found)) != len(found):
            raise ValueError("expected each word once")
        return found

    return parse


def endpoints(raw: str) -> tuple[str, ...]:
    """`host:port`, comma-separated; a leading http:// is dropped, https:// is refused."""
    found = []
    for word in words()(raw):
        if word.startswith("https://"):
            raise ValueError("expected host:port without TLS")
        address = word.removeprefix("http://").rstrip("/")
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"expected host:port, not {word!r}")
        found.append(address)
    return tuple(found)
