"""What is asked of a server: a workload is data, written in TOML and identified by its content."""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path
from typing import Literal

import msgspec

from splice.bench import arrivals as arrival_processes
from splice.bench.arrivals import Arrivals, Closed, Traced
from splice.bench.trace import TracedRequest, read_trace
from splice.settings.resolve import suggestion
from wire.errors import ErrorCode, SpliceError

PromptForm = Literal["ids", "text", "chat"]


class RandomPrompt(msgspec.Struct, frozen=True, tag="random", tag_field="kind", forbid_unknown_fields=True):
    """`tokens` tokens that no other prompt begins with."""

    tokens: int


class SharedPrefix(msgspec.Struct, frozen=True, tag="shared_prefix", tag_field="kind", forbid_unknown_fields=True):
    """`prefix_tokens` tokens that `1 / prefixes` of the requests begin with, then `tokens` of their own."""

    prefix_tokens: int
    tokens: int
    prefixes: int = 1


class MultiTurn(msgspec.Struct, frozen=True, tag="multi_turn", tag_field="kind", forbid_unknown_fields=True):
    """Conversations of `turns` questions of `tokens` tokens; each carries all questions and answers before it.

    Chat only: the answers are those the server gave. `requests` counts conversations.
    """

    tokens: int
    turns: int
    think_s: float = 0.0
    """Pause of the human before each further question."""


class TracedPrompt(msgspec.Struct, frozen=True, tag="trace", tag_field="kind", forbid_unknown_fields=True):
    """Lengths and shared blocks as the trace says; its `output_length` replaces `output_tokens`."""

    block_tokens: int = 512


Prompt = RandomPrompt | SharedPrefix | MultiTurn | TracedPrompt


class Slo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits in milliseconds. A request is good when it met every limit that is given."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    max_gap_ms: float | None = None
    """Of any single gap between pieces: a mean hides stalls."""
    e2e_ms: float | None = None


class Workload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides what is sent and when, except the seed of a repeat."""

    name: str
    title: str
    requests: int
    arrivals: Arrivals
    prompt: Prompt
    output_tokens: int
    form: PromptForm = "ids"
    """`ids`: token ids to /v1/completions; `text`: text of that many tokens; `chat`: messages."""
    token_ids: tuple[int, int] = (1000, 30000)
    """Prompt tokens are drawn from [low, high): within the vocabulary and past its special tokens."""
    warmup_requests: int = 2
    """Sent, and not counted, before each measured run."""
    slo: Slo = Slo()
    trace: tuple[TracedRequest, ...] = ()
    """The trace's own lines; a file names it by `trace_file`."""
    beside: Workload | None = None
    """A closed loop that goes on, over and over, while this one is measured: what do its prompts do to these streams?
    A file names it as `splice bench run` would."""

    @property
    def digest(self) -> str:
        """32 hexadecimal digits over everything but the title and the limits: equal digests, equal work."""
        content = msgspec.json.encode((_bare(self), self.beside and _bare(self.beside)), order="sorted")
        return hashlib.blake2b(content, digest_size=16).hexdigest()

    @property
    def streams(self) -> int | None:
        """Concurrent clients of a closed loop; None for an open loop."""
        return self.arrivals.streams if isinstance(self.arrivals, Closed) else None


def _bare(workload: Workload) -> Workload:
    return msgspec.structs.replace(workload, title="", slo=Slo(), beside=None)


def workload_names() -> tuple[str, ...]:
    """Of the workloads that come with Splice."""
    found = resources.files("splice.bench").joinpath("workloads").iterdir()
    return tuple(sorted(each.name.removesuffix(".toml") for each in found if each.name.endswith(".toml")))


def load_workload(name: str) -> Workload:
    """A named workload, or a TOML file. Raises SpliceError(bad_setting) saying what is wrong with it."""
    if name in workload_names():
        text = resources.files("splice.bench").joinpath("workloads", f"{name}.toml").read_text()
        return parse_workload(text, name, Path())
    path = Path(name)
    try:
        text = path.read_text()
    except OSError as error:
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            f"no workload {name!r}{suggestion(name, workload_names())}; known: {', '.join(workload_names())}, "
            f"or a TOML file ({error.strerror})",
            param="workload",
        ) from None
    return parse_workload(text, name, path.parent)


def parse_workload(text: str, origin: str, folder: Path) -> Workload:
    """`folder`: where a relative `trace_file` is looked for."""
    try:
        fields = msgspec.toml.decode(text)
        trace_file, beside = fields.pop("trace_file", None), fields.pop("beside", None)
        if "trace" in fields:
            raise msgspec.ValidationError("`trace` is filled from `trace_file`; give that")
        workload = msgspec.convert(fields, Workload)
    except (msgspec.DecodeError, ValueError) as error:
        raise SpliceError(ErrorCode.BAD_SETTING, f"workload {origin}: {error}", param="workload") from None
    if trace_file is not None:
        requests = read_trace(folder / str(trace_file))[: workload.requests]
        workload = msgspec.structs.replace(workload, trace=requests, requests=len(requests))
    if beside is not None:
        workload = msgspec.structs.replace(workload, beside=_load_beside(str(beside), origin, folder))
    check(workload)
    return workload


def _load_beside(name: str, origin: str, folder: Path) -> Workload:
    other = load_workload(name if name in workload_names() else str(folder / name))
    if other.streams is None or other.beside is not None or isinstance(other.prompt, MultiTurn):
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            f"workload {origin}: beside: {name} must be a closed loop of single requests, with nothing beside it",
            param="workload.beside",
        )
    return other


def check(workload: Workload) -> None:
    """Raises SpliceError(bad_setting) naming the first field that cannot be."""
    arrival_processes.check(workload.arrivals)
    low, high = workload.token_ids
    traced = isinstance(workload.prompt, TracedPrompt)
    problems = [
        ("requests", workload.requests < 1, "expected at least 1"),
        ("output_tokens", workload.output_tokens < 1, "expected at least 1"),
        ("warmup_requests", workload.warmup_requests < 0, "expected at least 0"),
        ("token_ids", not 0 <= low < high, "expected 0 <= low < high"),
        ("prompt", any(_number(workload.prompt, name) < 1 for name in _COUNTS), "its counts must be at least 1"),
        ("prompt", _number(workload.prompt, "think_s") < 0, "think_s must not be negative"),
        ("form", isinstance(workload.prompt, MultiTurn) and workload.form != "chat", "multi_turn needs form = 'chat'"),
        ("form", traced and workload.form != "ids", "a trace's prompts need form = 'ids'"),
        (
            "trace_file",
            (traced or isinstance(workload.arrivals, Traced)) and not workload.trace,
            "kind = 'trace' needs a trace_file",
        ),
    ]
    for field, wrong, expected in problems:
        if wrong:
            raise SpliceError(
                ErrorCode.BAD_SETTING, f"workload {workload.name}: {field}: {expected}", param=f"workload.{field}"
            )


_COUNTS = ("tokens", "prefix_tokens", "prefixes", "turns", "block_tokens")


def _number(prompt: Prompt, name: str) -> float:
    return float(getattr(prompt, name, 1))
