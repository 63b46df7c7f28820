"""The deployment files and the operator's page say what the code does."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from prometheus_client.parser import text_string_to_metric_families

from membership.server import find_etcd
from router.metrics import RouterMetrics
from router.settings import RouterSettings
from splice.cli.main import app
from splice.settings.commands import RouterCommandSettings, WorkerCommandSettings, names_of_all_commands
from splice.settings.resolve import Resolved, resolve
from wire.errors import ERROR_CLASSES, ErrorCode
from worker.process import ENGINE_STOP_S, SERVER_GRACE_S

ROOT = Path(__file__).resolve().parents[3]
SYSTEMD = ROOT / "deploy" / "systemd"
UNITS = sorted(SYSTEMD.glob("*.service"))
RAY_YAML = ROOT / "deploy" / "ray" / "cluster.yaml"
OPERATE = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
ETCD_CALLS_S = 3.0 + 2.0
"""At most for telling etcd of the drain, and for leaving it."""


def values(unit: Path, key: str) -> list[str]:
    """Every value of a key; continued lines are joined."""
    text = unit.read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{key}=")]


def environment(name: str) -> dict[str, str]:
    lines = (SYSTEMD / "etc" / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def settings(settings_class: type[Any], variables: dict[str, str]) -> Resolved[Any]:
    return resolve(
        settings_class,
        flags={},
        environment=variables,
        config=SYSTEMD / "etc" / "splice.yaml",
        known_elsewhere=names_of_all_commands(),
    )


def splice_command_lines() -> Iterator[tuple[str, list[str]]]:
    """Every `splice …` of the units, with its source."""
    for unit in UNITS:
        for line in values(unit, "ExecStart"):
            program, *words = shlex.split(line)
            if Path(program).name == "splice":
                yield unit.name, words


@pytest.mark.parametrize(("source", "words"), list(splice_command_lines()))
def test_units_start_commands_and_flags_that_exist(source: str, words: list[str]) -> None:
    root = typer.main.get_command(app)
    name, *arguments = words
    command = root.commands[name]  # type: ignore[attr-defined]
    context = command.make_context(name, arguments)  # raises for an unknown flag
    assert context.params["config"] == Path("/etc/splice/splice.yaml"), source


def test_there_are_units_for_router_worker_and_etcd() -> None:
    assert [unit.name for unit in UNITS] == ["splice-etcd.service", "splice-router.service", "splice-worker@.service"]
    assert {words[0] for _, words in splice_command_lines()} == {"router", "worker"}


def test_example_settings_of_the_router_are_accepted_and_win_in_the_right_order() -> None:
    found = settings(RouterCommandSettings, environment("router.env"))
    assert found.settings.api_key
    assert found.origins["port"] == "SPLICE_PORT"
    assert found.settings.etcd_endpoints == ("10.0.0.1:2379", "10.0.0.2:2379", "10.0.0.3:2379")


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_example_settings_of_workers_are_accepted(role: str) -> None:
    unit = SYSTEMD / "splice-worker@.service"
    given = dict(line.replace("%i", role).split("=", 1) for line in values(unit, "Environment"))
    found = settings(WorkerCommandSettings, given | environment(f"worker-{role}.env"))
    assert found.settings.role == role
    assert found.settings.host.startswith("10.")
    assert found.settings.cluster == settings(RouterCommandSettings, {}).settings.cluster


def test_systemd_waits_longer_than_a_drain_takes() -> None:
    [worker_stop] = values(SYSTEMD / "splice-worker@.service", "TimeoutStopSec")
    drain_s = settings(WorkerCommandSettings, {"SPLICE_ROLE": "decode"}).settings.drain_timeout
    assert float(worker_stop) >= drain_s + ETCD_CALLS_S + SERVER_GRACE_S + ENGINE_STOP_S
    [router_stop] = values(SYSTEMD / "splice-router.service", "TimeoutStopSec")
    assert float(router_stop) >= 2 * RouterSettings().drain_timeout_s + ETCD_CALLS_S
    for unit in UNITS:
        assert values(unit, "KillSignal") == ["SIGTERM"]


def test_workers_of_one_machine_stay_in_the_namespaces_that_shared_memory_needs() -> None:
    for unit in UNITS:
        for key in ("PrivateNetwork", "PrivateUsers", "PrivateIPC"):
            assert not values(unit, key), f"{unit.name}: {key} ends hand-off by shm"
        assert not values(unit, "RemoveIPC"), f"{unit.name}: would remove segments of other units of the same user"


def test_etcd_unit_uses_flags_and_variables_that_etcd_has_and_none_twice() -> None:
    done = subprocess.run([find_etcd(), "--help"], capture_output=True, text=True, timeout=30, check=True)
    known = set(re.findall(r"^\s+--([a-z0-9-]+)", done.stdout, re.MULTILINE))
    [line] = values(SYSTEMD / "splice-etcd.service", "ExecStart")
    flags = {word.removeprefix("--").partition("=")[0] for word in shlex.split(line)[1:]}
    variables = {name.removeprefix("ETCD_").lower().replace("_", "-") for name in environment("etcd.env")}
    assert flags
    assert variables
    assert flags | variables <= known
    assert not flags & variables, "etcd ends when a setting stands in both"


def test_units_are_what_systemd_understands(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:  # other systems: at least sections and assignments
        for unit in UNITS:
            for line in unit.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
                assert not line or line[0] in "#[" or re.match(r"[A-Z]\w*=", line), f"{unit.name}: {line}"
        return
    for unit in UNITS:  # the programs are not installed here
        text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(encoding="utf-8"), flags=re.MULTILINE)
        (tmp_path / unit.name).write_text(text, encoding="utf-8")
    done = subprocess.run(
        [analyze, "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "splice-" in line]
    assert not ours


def ray_start_commands() -> dict[str, str]:
    config = yaml.safe_load(RAY_YAML.read_text(encoding="utf-8"))
    return {role: config[f"{role}_start_ray_commands"][0] for role in ("head", "worker")}


def test_ray_cluster_file_satisfies_rays_own_schema() -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(yaml.safe_load(RAY_YAML.read_text(encoding="utf-8")))
    validate_config(prepared)
    [node_type] = prepared["available_node_types"].values()
    assert node_type["min_workers"] == node_type["max_workers"] == len(prepared["provider"]["worker_ips"])
    with pytest.raises(ValidationError, match="max_worker"):
        validate_config({**prepared, "max_worker": 4})


@pytest.mark.parametrize("role", ["head", "worker"])
def test_ray_is_started_so_that_workers_outlive_gcs_server_and_strangers_stay_out(role: str) -> None:
    from ray.scripts.scripts import start

    line = ray_start_commands()[role]
    assert "RAY_AUTH_MODE=token" in line
    assert re.search(r"RAY_gcs_rpc_server_reconnect_timeout_s=\d{8,}", line)
    assert "RAY_worker_niceness=0" in line
    assert "ray stop" not in line
    words = [word for word in shlex.split(line.partition("ray start ")[2]) if word.startswith("--")]
    flags = {word.partition("=")[0] for word in words}
    assert flags <= {option for parameter in start.params for option in parameter.opts}
    assert "--block" not in flags
    if role == "head":
        assert "--dashboard-host=127.0.0.1" in words


def table(heading: str) -> list[list[str]]:
    """Rows of the first table under a heading, without backquotes."""
    section = OPERATE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_operators_page_lists_every_error_code_as_it_is() -> None:
    expected = [
        [code.value, str(seen.http_status), seen.grpc_status, seen.openai_type]
        for code, seen in ((code, ERROR_CLASSES[code]) for code in ErrorCode)
    ]
    rows = table("Error codes")
    assert [row[:4] for row in rows] == expected
    assert all(row[4] for row in rows)


def test_operators_page_lists_every_metric_that_the_router_exports() -> None:
    exported = {}
    for family in text_string_to_metric_families(RouterMetrics().expose().decode()):
        if not family.name.endswith("_created"):
            exported[family.name + ("_total" if family.type == "counter" else "")] = family.type
    rows = table("Metrics")
    assert {row[0]: row[2].partition(":")[0] for row in rows} == exported
    mentioned = set(re.findall(r"`(splice:\w+)", OPERATE))
    assert mentioned <= set(exported)


def test_operators_page_speaks_of_flags_that_exist() -> None:
    root = typer.main.get_command(app)
    known = {option for command in root.commands.values() for parameter in command.params for option in parameter.opts}  # type: ignore[attr-defined]
    mentioned = set(re.findall(r"`(?:splice \w+ )?(--[a-z][a-z-]+)", OPERATE))
    assert mentioned
    assert mentioned <= known


def test_figures_on_the_operators_page_are_the_defaults() -> None:
    router = RouterSettings()
    worker = {field.name: field.default for field in dataclasses.fields(WorkerCommandSettings)}
    for claim in (
        f"`--drain-timeout` ({worker['drain_timeout']:.0f} s)",
        f"{worker['registration_ttl']} s after the last sign",
        f"{router.drain_timeout_s:.0f} s for those running on HTTP",
        f"after {router.heartbeat_timeout_s:.0f} s without a heartbeat",
        f"engine step after {router.stall_timeout_s:.0f} s",
        f"tried up to {router.max_attempts} times",
        f"{router.max_running_requests} requests of this router",
        f"over {router.max_body_bytes >> 20} MiB",
        f"({router.request_timeout_s:.0f} s, or less",
    ):
        assert claim in " ".join(OPERATE.split()), claim


def test_ray_readme_stops_workers_with_a_job_that_the_placement_process_reads() -> None:
    import msgspec

    from splice.cluster.placement_job import Command, Job

    text = (ROOT / "deploy" / "ray" / "README.md").read_text(encoding="utf-8")
    [written] = re.findall(r"echo '(\{.*\})'", text)
    job = msgspec.json.decode(written, type=Command)
    assert isinstance(job, Job)
    assert job.action == "stop"
    assert set(json.loads(written)) - {"type"} <= set(Job.__struct_fields__)
