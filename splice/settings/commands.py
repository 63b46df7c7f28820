"""One settings class per command."""

from __future__ import annotations

from dataclasses import dataclass

from splice.settings import parse
from splice.settings.bench import BenchContestSettings, BenchRunSettings
from splice.settings.groups import (
    EngineSettings,
    FrontSettings,
    MembershipSettings,
    ModelSettings,
    PlaceSettings,
)
from splice.settings.setting import setting, settings_of


@dataclass(frozen=True, kw_only=True)
class ServeSettings(PlaceSettings, MembershipSettings, EngineSettings, FrontSettings, ModelSettings):
    """`splice serve`: etcd, Ray, router and both pools on this machine, or on the cluster that --ray-address names."""

    prefill: int = setting(
        1, parse.integer(0, 4096), "Prefill workers; with 0 the decode workers compute prompts too.", group="Pools"
    )
    decode: int = setting(1, parse.integer(1, 4096), "Decode workers.", group="Pools")
    prefill_nice: int = setting(
        5,
        parse.integer(0, 19),
        "How far computing prompts gives way to whatever else runs on the machine, in Linux's levels.",
        group="Pools",
    )
    ray_address: str | None = setting(
        None,
        parse.text,
        "Existing Ray cluster, host:port. Default: a head of our own on this machine.",
        group="Cluster",
    )
    worker_host: str = setting(
        "auto",
        parse.text,
        "Address workers listen on. Default: loopback with our own Ray head, the node's address on an existing one.",
        group="Cluster",
    )
    prefill_resource: str | None = setting(
        None, parse.text, "Custom Ray resource that marks nodes for prefill workers.", group="Cluster"
    )
    decode_resource: str | None = setting(
        None, parse.text, "Custom Ray resource that marks nodes for decode workers.", group="Cluster"
    )
    start_timeout: float = setting(
        180.0, parse.seconds(1), "Seconds until everything must be ready.", group="Cluster", metavar="S"
    )


@dataclass(frozen=True, kw_only=True)
class RouterCommandSettings(MembershipSettings, FrontSettings):
    """`splice router`: one front door. Any number can serve the same cluster."""


@dataclass(frozen=True, kw_only=True)
class WorkerCommandSettings(MembershipSettings, EngineSettings, ModelSettings):
    """`splice worker`: one worker as a plain process."""

    role: str = setting("decode", parse.choice("prefill", "decode"), "Which pool it joins.", group="Worker")
    host: str = setting("127.0.0.1", parse.text, "Address to listen on; peers must reach it.", group="Worker")
    port: int = setting(0, parse.integer(0, 65535), "gRPC port; 0 takes a free one.", group="Worker")
    worker_id: str | None = setting(None, parse.name, "Its name. Default: drawn.", group="Worker")
    nice: int = setting(
        0,
        parse.integer(0, 19),
        "How far its computing gives way to whatever else runs on the machine, in Linux's levels.",
        group="Worker",
    )
    registration_ttl: int = setting(
        5, parse.integer(2, 300), "Seconds after which a silent worker leaves the registry.", group="Worker"
    )
    drain_timeout: float = setting(
        30.0, parse.seconds(0), "Seconds running requests get at shutdown.", group="Worker", metavar="S"
    )
    fault: tuple[str, ...] = setting(
        (), parse.words(), "Arm fault points, for tests; loopback only.", group="Worker", metavar="LIST"
    )


@dataclass(frozen=True, kw_only=True)
class ClusterCommandSettings(PlaceSettings, MembershipSettings):
    """`splice status` and `splice down`."""


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """`splice chat` and `splice complete`: how to reach a running cluster and what to ask of it."""

    url: str = setting(
        "http://127.0.0.1:8000", parse.text, "Base address of a running router.", group="Server", metavar="URL"
    )
    api_key: str | None = setting(None, parse.text, "Bearer token of the server.", group="Server", secret=True)
    model: str | None = setting(None, parse.text, "Served name. Default: the only one there is.", group="Server")
    max_tokens: int = setting(256, parse.integer(1), "Longest answer, in tokens.", group="Sampling")
    temperature: float = setting(0.0, parse.number(0, 100), "0 is greedy.", group="Sampling")
    top_p: float = setting(1.0, parse.number(0, 1), "Nucleus of the distribution to draw from.", group="Sampling")
    top_k: int = setting(0, parse.integer(0), "Draw from this many likeliest tokens; 0 from all.", group="Sampling")
    min_p: float = setting(0.0, parse.number(0, 1), "Least share of the likeliest token.", group="Sampling")
    typical_p: float = setting(1.0, parse.number(0, 1), "Mass of the most typical tokens to keep.", group="Sampling")
    repetition_penalty: float = setting(1.0, parse.number(0, 2), "Above 1: repeat less.", group="Sampling")
    frequency_penalty: float = setting(0.0, parse.number(-2, 2), "Per repetition in the answer.", group="Sampling")
    presence_penalty: float = setting(0.0, parse.number(-2, 2), "Once it is in the answer.", group="Sampling")
    stop: tuple[str, ...] = setting((), parse.words(), "Texts that end the answer.", group="Sampling", metavar="LIST")
    bad_words: tuple[str, ...] = setting((), parse.words(), "Texts to keep out.", group="Sampling", metavar="LIST")
    seed: int | None = setting(
        None, parse.integer(0, (1 << 63) - 1), "Equal seeds give equal answers.", group="Sampling"
    )
    timeout: float = setting(300.0, parse.seconds(0.1), "Seconds an answer may take.", group="Server", metavar="S")

    def sampling(self) -> dict[str, object]:
        """The fields of a request, those left as they are not among them where the server has the same default."""
        asked: dict[str, object] = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
        }
        defaults = ClientSettings()
        for name in _LEFT_OUT:
            value = getattr(self, name)
            if value != getattr(defaults, name):
                asked[name] = list(value) if isinstance(value, tuple) else value
        return asked


_LEFT_OUT = (
    "top_k",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "stop",
    "bad_words",
)


ALL: tuple[type, ...] = (
    ServeSettings,
    RouterCommandSettings,
    WorkerCommandSettings,
    ClusterCommandSettings,
    ClientSettings,
    BenchRunSettings,
    BenchContestSettings,
)


def names_of_all_commands() -> frozenset[str]:
    """A file or an environment is shared by all commands: a name is unknown only if no command has it."""
    return frozenset(name for settings_class in ALL for name in settings_of(settings_class))
