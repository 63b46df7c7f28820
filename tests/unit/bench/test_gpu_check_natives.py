"""The engine's native modules on a machine that has not built them, and programs that may not take for ever."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from benchmarks.gpu import natives
from benchmarks.gpu.limited import TIMED_OUT, end_group, run_limited
from benchmarks.gpu.machine import commit


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.setattr(natives, "ROOT", tmp_path)
    monkeypatch.setattr(natives, "_beside_python", lambda program: f"/bin/{program}")
    for package in ("engine", "kvtransfer"):
        (tmp_path / package).mkdir()
    return tmp_path


def _built(scratch, *names):
    def run(command, limit_s, cwd, environment):
        if "--build" in command:
            for name in names:
                file = scratch / "natives" / "csrc" / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(name)
        return 0, ""

    return run


def test_modules_come_from_their_rooms_into_their_packages(tree):
    scratch = tree / "scratch"
    made = ("cpu/_native.x.so", "sampling/_sampling.x.so", "kv/_native.x.so", "cuda/_native.x.so")
    done = natives.build(sorted(natives.MODULES), scratch, 4, 10.0, _built(scratch, *made))
    assert (set(done.built), done.error) == (set(natives.MODULES), None)
    found = {str(path.relative_to(tree)): path.read_text() for path in tree.glob("*/*.so")}
    assert found == {
        "engine/_native.x.so": "cpu/_native.x.so",
        "engine/_sampling.x.so": "sampling/_sampling.x.so",
        "kvtransfer/_native.x.so": "kv/_native.x.so",
    }


def test_a_build_that_fails_is_said_and_stops_nothing(tree, monkeypatch):
    done = natives.build(["engine._sampling"], tree / "scratch", 4, 10.0, lambda *_: (1, "no nanobind here"))
    assert done.built == ()
    assert "no nanobind here" in str(done.error)
    monkeypatch.setattr(natives, "_beside_python", lambda program: None)
    assert "no cmake" in str(natives.build(["engine._sampling"], tree / "scratch", 4, 10.0).error)


def test_targets_are_those_of_the_build():
    said = " ".join(path.read_text() for path in (natives.ROOT / "csrc").glob("*/CMakeLists.txt"))
    assert all(f"nanobind_add_module({target} " in said for target in natives.MODULES.values())
    assert set(natives.missing()) <= set(natives.MODULES)


def test_a_program_that_takes_too_long_is_ended():
    code, said = run_limited([sys.executable, "-c", "import time; time.sleep(600)"], 0.2)
    assert (code, said.strip()) == (TIMED_OUT, "not done after 0 s")


CHILD = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"


def test_a_program_is_ended_with_all_that_it_started():
    """The end of the output that both hold open says that both have ended."""
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, process_group=0)
    assert process.stdout is not None
    assert int(process.stdout.readline()) != process.pid
    end_group(process)
    assert process.stdout.read() == ""
    assert process.wait() == -signal.SIGKILL
    end_group(process)


def test_a_program_that_is_not_there_is_a_failure_and_no_exception(tmp_path):
    code, said = run_limited(["/nothing/of/that/name"], 5.0, tmp_path)
    assert code == 127
    assert "cannot be run" in said


def test_a_tree_without_its_repository_says_what_it_was_checked_out_from(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.gpu.machine.ROOT", tmp_path)
    assert commit("0123+", tmp_path) == "0123+"
    assert commit(None, tmp_path) == "unknown"
    (tmp_path / "commit").write_text("ba98\n")
    assert commit(None, tmp_path) == "ba98"
