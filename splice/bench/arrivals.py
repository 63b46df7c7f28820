"""When requests come: one class per arrival process. Times are seconds after the beginning of the run."""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np

from wire.errors import ErrorCode, SpliceError


class Closed(msgspec.Struct, frozen=True, tag="closed", tag_field="kind", forbid_unknown_fields=True):
    """`streams` clients, each sending its next request when its last one has ended."""

    streams: int


class Poisson(msgspec.Struct, frozen=True, tag="poisson", tag_field="kind", forbid_unknown_fields=True):
    """Independent clients: exponential gaps with mean 1 / `rate` (requests per second)."""

    rate: float


class Constant(msgspec.Struct, frozen=True, tag="constant", tag_field="kind", forbid_unknown_fields=True):
    """One request every 1 / `rate` seconds."""

    rate: float


class Burst(msgspec.Struct, frozen=True, tag="burst", tag_field="kind", forbid_unknown_fields=True):
    """`size` requests at once, every `every_s` seconds."""

    size: int
    every_s: float


class Traced(msgspec.Struct, frozen=True, tag="trace", tag_field="kind", forbid_unknown_fields=True):
    """At the times of the trace file, played `speed` times as fast. `unit` is that of its timestamps."""

    speed: float = 1.0
    unit: Literal["s", "ms"] = "s"


Arrivals = Closed | Poisson | Constant | Burst | Traced


def check(arrivals: Arrivals) -> None:
    """Raises SpliceError(bad_setting) for a number that cannot be."""
    for name in arrivals.__struct_fields__:
        value = getattr(arrivals, name)
        if name != "unit" and not 0 < value < float("inf"):
            raise SpliceError(
                ErrorCode.BAD_SETTING,
                f"arrivals.{name} is {value}, expected a number above 0",
                param=f"arrivals.{name}",
            )


def due_times(arrivals: Arrivals, count: int, seed: tuple[int, ...], traced: tuple[float, ...] = ()) -> list[float]:
    """`count` ascending times of an open loop. `traced`: the trace's timestamps, for `Traced`.

    Equal seeds give equal times. A closed loop has none: asking for them is an error of the caller.
    """
    match arrivals:
        case Poisson(rate):
            gaps = np.random.default_rng(seed).exponential(1.0 / rate, count)
            return [float(each) for each in np.cumsum(gaps) - gaps[:1]] if count else []
        case Constant(rate):
            return [index / rate for index in range(count)]
        case Burst(size, every_s):
            return [index // size * every_s for index in range(count)]
        case Traced(speed, unit):
            first, scale = traced[0] if traced else 0.0, speed * (1000.0 if unit == "ms" else 1.0)
            return [(each - first) / scale for each in traced[:count]]
        case Closed():
            raise ValueError("a closed loop has no due times")
