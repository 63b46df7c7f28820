"""Whole contests between two small real servers, each a process of its own."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from splice.bench.contest_file import load_contest
from splice.bench.process_tree import MARK, ServerTree
from splice.bench.resources import ResourceMeter
from splice.bench.result import read_result
from splice.cli.main import app
from wire.errors import SpliceError

ROOT = Path(__file__).resolve().parents[3]
SERVER = """
import sys, time
sys.path.insert(0, {root!r})
from tests.unit.bench.sse_server import HEAD, SseServer, answer
pause = float(sys.argv[2])
def reply(body):
    head, *rest = answer(body["max_tokens"])
    return [head, *(each for piece in rest for each in (pause, piece))]
server = SseServer(reply, port=int(sys.argv[1]))
with server.running():
    time.sleep(600)
"""
WORKLOAD = """
name = "small"
title = "small"
requests = 3
output_tokens = 4
warmup_requests = 1
arrivals = { kind = "closed", streams = 2 }
prompt = { kind = "random", tokens = 5 }
"""


def entry(name: str, script: Path, pause: float, more: str = "") -> str:
    return f"""
[[server]]
name = "{name}"
command = ["{sys.executable}", "{{scripts}}/{script.name}", "{{port}}", "{pause}"]
model = "tiny"
dialect = "vllm"
version_command = ["{sys.executable}", "--version"]
stop_timeout_s = 5.0
{more}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "server.py").write_text(SERVER.format(root=str(ROOT)))
    (tmp_path / "dies.py").write_text("raise SystemExit('no such model')")
    (tmp_path / "w.toml").write_text(WORKLOAD)
    return tmp_path


def contest(folder: Path, *entries: str, rounds: int = 2) -> tuple[int, str]:
    (folder / "c.toml").write_text("".join(entries) + f'\n[places]\nscripts = "{folder}"\n')
    words = ["bench", "contest", str(folder / "c.toml"), "-o", str(folder / "r.json"), "--rounds", str(rounds)]
    ran = CliRunner().invoke(app, [*words, "--workload", str(folder / "w.toml")], env={"COLUMNS": "200"})
    return ran.exit_code, ran.output + str(ran.exception or "")


def children() -> list[int]:
    return [child.pid for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]


def test_servers_alternate_get_equal_prompts_and_are_gone_afterwards(folder: Path) -> None:
    script = folder / "server.py"
    before = children()
    code, said = contest(folder, entry("quick", script, 0.0), entry("slow", script, 0.02, "keep = true"))
    assert code == 0, said
    assert children() == before
    result = read_result(folder / "r.json")
    quick, slow = result.series
    assert [len(each.repeats) for each in result.series] == [2, 2]
    assert (len(quick.starts), len(slow.starts)) == (2, 1)
    assert all(start.first_token_s >= start.ready_s > 0 for start in quick.starts)
    assert quick.server.version is not None
    assert quick.server.version.startswith("Python 3")
    assert all(sample.error is None for each in result.series for one in each.repeats for sample in one.samples)
    began = [(one.began, each.server.name) for each in result.series for one in each.repeats]
    assert len(began) == 4
    memory = quick.repeats[0].resources
    assert (memory.pss_bytes or 0) > 1_000_000
    assert (memory.peak_rss_bytes or 0) >= (memory.rss_bytes or 0) > 0
    assert slow.repeats[0].summary.output_tokens_per_s < quick.repeats[0].summary.output_tokens_per_s


def test_a_server_that_does_not_start_is_named_with_its_last_words_and_the_others_go_on(folder: Path) -> None:
    good = entry("good", folder / "server.py", 0.0)
    code, said = contest(folder, entry("bad", folder / "dies.py", 0.0), good, rounds=1)
    assert code == 0
    assert read_result(folder / "r.json").servers() == ("good",)
    assert "bad is out" in said
    assert "no such model" in said


def test_a_contest_without_a_server_left_is_an_error(folder: Path) -> None:
    code, said = contest(folder, entry("bad", folder / "dies.py", 0.0))
    assert code != 0
    assert "no server is left" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "missing required field `server`"),
        ("[[server]]\nname = 'a'\nmodel = 'm'\ncommand = []", "a command each"),
        ("[[server]]\nname = 'a'\nmodel = 'm'\ncommand = ['x']\n" * 2, "different names"),
        ("[[server]]\nname = 'a'\nmodel = 'm'\ncommand = ['x']\ndialect = 'vlm'", "did you mean vllm"),
        ("[[server]]\nname = 'a'\nmodel = 'm'\ncomand = ['x']", "comand"),
        ("[[server]", "contest.toml"),
    ],
)
def test_a_contest_file_that_cannot_be_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "contest.toml"
    path.write_text(text)
    with pytest.raises(SpliceError) as error:
        load_contest(path, (), {})
    assert said in str(error.value)


def test_the_contest_file_of_this_repository_is_sound() -> None:
    entries = load_contest(ROOT / "benchmarks" / "contests" / "peers.toml", (), {"gguf": "model.gguf"})
    assert {"splice", "splice 1+1", "llama-server"} <= {entry.name for entry in entries}
    assert not any("{" in word for entry in entries for word in entry.command if word != "{port}")


def test_unknown_servers_and_places_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    path = tmp_path / "contest.toml"
    path.write_text("[[server]]\nname = 'abc'\nmodel = 'm'\ncommand = ['{home}/x']\n[places]\nhome = '/a'\n")
    assert load_contest(path, (), {"home": "/b"})[0].command == ("/b/x",)
    with pytest.raises(SpliceError, match="did you mean abc"):
        load_contest(path, ("abd",), {})
    with pytest.raises(SpliceError, match="no place 'hom'; did you mean home"):
        load_contest(path, (), {"hom": "/b"})


def test_cpu_time_and_memory_are_those_of_the_whole_tree_detached_processes_too(tmp_path: Path) -> None:
    busy = "import time\nends = time.process_time() + 0.3\nwhile time.process_time() < ends: pass\ntime.sleep(60)"
    parent = f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {busy!r}], start_new_session=True)"
    mark = tmp_path.name
    meter = ResourceMeter(ServerTree(None, mark))
    with meter.running():
        started = psutil.Popen([sys.executable, "-c", parent], env={MARK: mark})
        started.wait(20)
        ends = time.monotonic() + 20
        tree: list[psutil.Process] = []
        while time.monotonic() < ends and not (tree and sum(tree[0].cpu_times()[:2]) >= 0.25):
            tree = ServerTree(None, mark).processes()
            time.sleep(0.05)
        time.sleep(0.2)
    for process in tree:
        process.kill()
    assert len(tree) == 1
    assert meter.result is not None
    assert meter.result.cpu_s is not None
    assert meter.result.cpu_s >= 0.25
    assert (meter.result.pss_bytes or 0) > 0
    assert meter.result.processes == 1
