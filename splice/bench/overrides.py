"""A named workload, changed on the command line: the digest changes with it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from splice.bench.arrivals import Closed, Poisson
from splice.bench.workload import Slo, Workload, check
from splice.settings.resolve import suggestion
from wire.errors import ErrorCode, SpliceError


def override(
    workload: Workload,
    *,
    requests: int | None = None,
    streams: int | None = None,
    rate: float | None = None,
    token_ids: str | None = None,
    slo: Sequence[str] = (),
) -> Workload:
    """Raises SpliceError(bad_setting) for values that cannot be, or contradict each other."""
    changes: dict[str, object] = {}
    if requests is not None:
        if workload.trace and requests > len(workload.trace):
            raise _bad("requests", f"{requests}: the trace of {workload.name} holds {len(workload.trace)}")
        changes["requests"] = requests
        changes["trace"] = workload.trace[:requests]
    if streams is not None and rate is not None:
        raise _bad("rate", "give --streams (closed loop) or --rate (open loop), not both")
    if streams is not None:
        changes["arrivals"] = Closed(streams)
    if rate is not None:
        changes["arrivals"] = Poisson(rate)
    if token_ids is not None:
        low, _, high = token_ids.partition(":")
        if not low.isdecimal() or not high.isdecimal():
            raise _bad("token_ids", f"{token_ids!r}; expected LOW:HIGH, such as 5:250")
        changes["token_ids"] = (int(low), int(high))
    if slo:
        changes["slo"] = parse_slo(slo)
    changed = msgspec.structs.replace(workload, **changes)
    check(changed)
    return changed


def parse_slo(words: Sequence[str]) -> Slo:
    """From `ttft=500` and the like, in milliseconds."""
    known = [name.removesuffix("_ms") for name in Slo.__struct_fields__]
    limits: dict[str, float] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in known:
            raise _bad("slo", f"no limit {name!r}{suggestion(name, known)}; known: {', '.join(known)}")
        try:
            limits[f"{name}_ms"] = float(value.removesuffix("ms"))
        except ValueError:
            raise _bad("slo", f"{word!r}; expected {name}=MILLISECONDS") from None
    return Slo(**limits)


def _bad(name: str, problem: str) -> SpliceError:
    return SpliceError(ErrorCode.BAD_SETTING, f"--{name.replace('_', '-')} is {problem}", param=name)
