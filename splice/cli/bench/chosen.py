"""From settings to workloads, and to the client's own place on the machine."""

from __future__ import annotations

import os
from pathlib import Path

from splice.bench.overrides import override
from splice.bench.prompts import TextOf, text_maker
from splice.bench.tokenizer_file import open_tokenizer
from splice.bench.workload import Workload, load_workload
from splice.settings.bench import LoadSettings
from wire.errors import ErrorCode, SpliceError


def chosen_workloads(settings: LoadSettings) -> list[Workload]:
    """Raises SpliceError(bad_setting)."""
    found = [
        override(
            load_workload(name),
            requests=settings.requests,
            streams=settings.streams,
            rate=settings.rate,
            token_ids=settings.token_ids,
            slo=settings.slo,
        )
        for name in settings.workload
    ]
    if len({workload.name for workload in found}) != len(found):
        raise SpliceError(
            ErrorCode.BAD_SETTING, "two workloads bear the same name; results are found by it", param="workload"
        )
    if settings.tokenizer is None and (texts := [each.name for each in found if each.form != "ids"]):
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            f"workload {', '.join(texts)} sends text; say with --tokenizer how its tokens are counted",
            param="tokenizer",
        )
    return found


def chosen_text(settings: LoadSettings) -> TextOf | None:
    return None if settings.tokenizer is None else text_maker(open_tokenizer(Path(settings.tokenizer)))


def chosen_cpus(settings: LoadSettings) -> frozenset[int]:
    """Where the client is to run; empty for anywhere. Raises SpliceError(bad_setting) for CPUs that are not there."""
    allowed = os.sched_getaffinity(0)
    wrong = [word for word in settings.client_cpus if not word.isdecimal() or int(word) not in allowed]
    if wrong:
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            f"--client-cpus: {wrong[0]!r} is none of the CPUs here: {sorted(allowed)}",
            param="client_cpus",
        )
    return frozenset(int(word) for word in settings.client_cpus)
