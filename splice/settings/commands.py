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

    prefill: int = setting(1, parse.integer(0, 4096), "Prefill workers.", group="Pools")
    decode: int = setting(1, parse.integer(1, 4096), "Decode workers.", group="Pools")
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
    start_timeout: float = setting(180.0, parse.seconds(1), "Seconds until everything must be ready.", group="Cluster")


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
    registration_ttl: int = setting(
        5, parse.integer(2, 300), "Seconds after which a silent worker leaves the registry.", group="Worker"
    )
    drain_timeout: float = setting(30.0, parse.seconds(0), "Seconds running requests get at shutdown.", group="Worker")
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
    seed: int | None = setting(
        None, parse.integer(0, (1 << 63) - 1), "Equal seeds give equal answers.", group="Sampling"
    )
    timeout: float = setting(300.0, parse.seconds(0.1), "Seconds an answer may take.", group="Server")


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
