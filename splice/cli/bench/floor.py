"""`splice bench floor`"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from splice.bench.bandwidth import floor, measure_bandwidth
from splice.bench.result import read_result
from splice.bench.statistics import median
from splice.cli.console import out
from wire.errors import ErrorCode, SpliceError


def command(
    file: Annotated[Path, typer.Argument(help="A result with a workload of one stream.", metavar="FILE")],
    model_file: Annotated[Path, typer.Option(help="The weights: every decode step reads them once.")],
    threads: Annotated[int | None, typer.Option(help="Threads that read. Default: all cores.", min=1)] = None,
) -> None:
    """Measure this machine's memory bandwidth and say what share of it each server's decoding used.

    Of workloads with one stream, whose steps read all weights for one token. Needs a quiet machine.
    """
    if not model_file.is_file():
        raise SpliceError(ErrorCode.BAD_SETTING, f"{model_file} is no file", param="model_file")
    single = [series for series in read_result(file).series if series.workload.streams == 1]
    if not single:
        raise SpliceError(ErrorCode.BAD_SETTING, f"{file} holds no workload of one stream, such as A", param="result")
    size = model_file.stat().st_size
    used = threads or len(os.sched_getaffinity(0))
    bandwidth = measure_bandwidth(size, used)
    out.print(
        f"{used} threads over {size / 1e6:.0f} MB: reading {bandwidth.read / 1e9:.1f} GB/s, "
        f"copying {bandwidth.copy / 1e9:.1f} GB/s (both ways)"
    )
    for series in single:
        steps = [repeat.summary.tpot_ms.p50 for repeat in series.repeats if repeat.summary.tpot_ms is not None]
        if steps:
            found = floor(size, max(bandwidth.read, bandwidth.copy), median(steps))
            out.print(
                f"{series.workload.name} {series.server.name}: {found.measured_ms:.2f} ms a token, floor "
                f"{found.floor_ms:.2f} ms: {100 * found.share:.0f} % of the bandwidth"
            )
