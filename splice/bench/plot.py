"""Pictures of results: one row of charts per workload, one colour per server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splice.bench.metrics import SHOWN, values
from splice.bench.result import Series
from splice.bench.statistics import bootstrap_median, median
from wire.errors import ErrorCode, SpliceError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".svg", ".png", ".pdf")


def plot(labelled: Sequence[tuple[str, Series]], path: Path) -> None:
    """Per workload: throughput with its interval, and the distributions of TTFT and of the gaps between tokens.

    `labelled`: (label, series). Raises SpliceError where matplotlib is missing or the format is unknown.
    """
    if path.suffix not in FORMATS:
        raise SpliceError(
            ErrorCode.BAD_SETTING, f"cannot draw {path.name}; expected one of {', '.join(FORMATS)}", param="output"
        )
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 (an extra)
    except ImportError:
        raise SpliceError(
            ErrorCode.MISSING_PART, "plots need matplotlib: pip install 'splice-serve[plot]'", param="output"
        ) from None
    names = list(dict.fromkeys(series.workload.name for _, series in labelled))
    labels = list(dict.fromkeys(label for label, _ in labelled))
    colours = {label: f"C{index % 10}" for index, label in enumerate(labels)}
    figure = Figure(figsize=(13.0, 3.2 * len(names)), layout="constrained")
    rows = figure.subplots(len(names), 3, squeeze=False)
    for row, name in zip(rows, names, strict=True):
        chosen = [(label, series) for label, series in labelled if series.workload.name == name]
        _bars(row[0], chosen, colours)
        _spread(row[1], chosen, colours, "TTFT", lambda sample: [] if sample.first_us is None else [sample.first_us])
        _spread(row[2], chosen, colours, "gap between tokens", lambda sample: sample.gaps_us)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _bars(axes: Axes, chosen: Sequence[tuple[str, Series]], colours: Mapping[str, str]) -> None:
    metric = next(each for each in SHOWN if each.name == "output tokens/s")
    for index, (label, series) in enumerate(chosen):
        figures = values(metric, series.repeats)
        middle, (low, high) = median(figures), bootstrap_median(figures)
        axes.barh(index, middle, color=colours[label], xerr=[[middle - low], [high - middle]], capsize=3)
        axes.annotate(f" {middle:.0f}", (middle, index), va="bottom", fontsize=8)
    axes.set_yticks(range(len(chosen)), [label for label, _ in chosen])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    workload = chosen[0][1].workload
    axes.set_title(f"{workload.name}: {workload.title}", fontsize=9, loc="left")
    axes.set_xlabel("output tokens/s, median and 95 % interval", fontsize=8)


def _spread(
    axes: Axes, chosen: Sequence[tuple[str, Series]], colours: Mapping[str, str], title: str, times_us: Any
) -> None:
    """The share of observations not longer than x, over all repeats: tails are seen, not summed up."""
    for label, series in chosen:
        seen = sorted(
            time / 1000.0
            for repeat in series.repeats
            for sample in repeat.samples
            if sample.error is None
            for time in times_us(sample)
        )
        if seen:
            axes.step(seen, [(i + 1) / len(seen) for i in range(len(seen))], color=colours[label], label=label)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.axhline(0.95, color="0.8", linewidth=0.8, zorder=0)
    axes.set_xlabel(f"{title}, ms (line: 95 %)", fontsize=8)
    axes.grid(visible=True, which="both", axis="x", color="0.93")
    axes.legend(fontsize=7)
