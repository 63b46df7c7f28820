"""Settings of `splice bench`: what to ask, of whom, how often, and where the result goes."""

from __future__ import annotations

from dataclasses import dataclass

from splice.settings import parse
from splice.settings.setting import setting

DIALECT_NAMES = ("splice", "vllm", "sglang", "tensorrt-llm", "llama.cpp", "openai")


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """What every measurement needs."""

    workload: tuple[str, ...] = setting(
        ("A",),
        parse.words(),
        "Workloads: names (`splice bench workloads`) or TOML files.",
        group="Load",
        metavar="LIST",
    )
    requests: int | None = setting(None, parse.integer(1), "Requests of a run. Default: the workload's.", group="Load")
    streams: int | None = setting(
        None, parse.integer(1), "Concurrent streams, turning any workload into a closed loop.", group="Load"
    )
    rate: float | None = setting(
        None, parse.number(1e-6, 1e6), "Requests/s, turning any workload into Poisson arrivals.", group="Load"
    )
    token_ids: str | None = setting(
        None, parse.text, "Draw prompt tokens from LOW:HIGH; for vocabularies below 30000.", group="Load"
    )
    slo: tuple[str, ...] = setting(
        (),
        parse.words(),
        "Limits for goodput in ms: ttft=500,tpot=50,max_gap=250,e2e=5000.",
        group="Load",
        metavar="LIST",
    )
    tokenizer: str | None = setting(
        None, parse.text, "tokenizer.json, model directory or GGUF: for workloads that send text.", group="Load"
    )
    bench_seed: int = setting(0, parse.integer(0, (1 << 31) - 1), "Of prompts and arrivals.", group="Load")
    run_timeout: float = setting(
        900.0, parse.seconds(1), "Seconds one run may take; what is open then failed.", group="Load", metavar="S"
    )
    client_cpus: tuple[str, ...] = setting(
        (), parse.words(), "Pin the client to these CPUs. Default: not pinned.", group="Load", metavar="LIST"
    )


@dataclass(frozen=True, kw_only=True)
class BenchRunSettings(LoadSettings):
    """`splice bench run`: one server that is already there."""

    url: str = setting("http://127.0.0.1:8000", parse.text, "Base address.", group="Server", metavar="URL")
    api_key: str | None = setting(None, parse.text, "Bearer token of the server.", group="Server", secret=True)
    model: str | None = setting(None, parse.text, "Served name. Default: the only one there is.", group="Server")
    dialect: str = setting(
        "splice", parse.choice(*DIALECT_NAMES), "How the server spells `exactly n tokens`.", group="Server"
    )
    server_name: str | None = setting(None, parse.text, "Its name in results. Default: the dialect.", group="Server")
    server_pid: int | None = setting(
        None, parse.integer(1), "Report CPU and memory of this process and all below it.", group="Server"
    )
    model_file: str | None = setting(
        None, parse.text, "What it serves: its digest guards comparisons.", group="Server", metavar="PATH"
    )
    repeats: int = setting(3, parse.integer(1, 1000), "Measured runs of each workload.", group="Load")


@dataclass(frozen=True, kw_only=True)
class BenchContestSettings(LoadSettings):
    """`splice bench contest`: several servers in turn."""

    servers: tuple[str, ...] = setting(
        (), parse.words(), "Only these of the file's servers.", group="Contest", metavar="LIST"
    )
    rounds: int = setting(3, parse.integer(1, 1000), "Times every server gets its turn.", group="Contest")
    place: tuple[str, ...] = setting(
        (), parse.words(), "Values of the file's places: NAME=PATH.", group="Contest", metavar="LIST"
    )
