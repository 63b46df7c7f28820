"""A whole check, with a GPU that is said to be there and measurements that are a script: what a run leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import check
from benchmarks.gpu.proofs import Proof
from benchmarks.gpu.report import read
from benchmarks.gpu.tasks import Task
from benchmarks.gpu.units import ROOT
from wire.errors import ErrorCode, SpliceError

PROCESS = """#!{python}
import json, os, sys
plan, first = json.load(open(sys.argv[3])), int(sys.argv[4])
said = open("{shared}").read().split()
if sys.argv[5] not in said:
    open("{shared}", "a").write(sys.argv[5] + " ")
for index, name in list(enumerate(plan))[first:]:
    print(json.dumps({{"begun": index}}), flush=True)
    open("{log}", "a").write(name + " ")
    if name == "fatal" and not os.path.exists("{mended}"):
        os.abort()
    print(json.dumps({{"index": index, "result": [{{"name": name}}]}}), flush=True)
"""
NAMES = {"one": (), "goal": ("a target",), "fatal": ("a target",), "two": ()}


@pytest.fixture
def ground(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(
        PROCESS.format(
            python=sys.executable, log=tmp_path / "log", mended=tmp_path / "mended", shared=tmp_path / "shared"
        )
    )
    python.chmod(0o755)
    (tmp_path / "log").write_text("")
    (tmp_path / "shared").write_text("")
    wanted = [Task(name, "tactics", 5.0, lambda library, shared: None, goals) for name, goals in NAMES.items()]
    monkeypatch.setattr(check.sys, "executable", str(python))
    monkeypatch.setattr(check.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(check, "machine", lambda: {"gpu": "A GPU", "sources": "1", "torch": "2", "cuda": "13"})
    monkeypatch.setattr(check, "tasks", lambda: wanted)
    monkeypatch.setattr(check, "table", lambda report: "")
    monkeypatch.setattr(check, "Library", lambda: None)
    monkeypatch.setattr(check, "_build", lambda *_: None)
    monkeypatch.setattr(check.proofs, "run_tests", lambda names, *_: [(name, _proof(name)) for name in names])
    monkeypatch.setattr(check.proofs, "check_memory", lambda names, *_: [(name, None) for name in names[:1]])
    return tmp_path


def _proof(name: str) -> Proof:
    return Proof(name, 1.0, 3, 0, ("it broke",) if name == "test_cuda_rows" else ())


def _run(ground, monkeypatch, *more: str):
    out = ground / "out"
    monkeypatch.setattr("sys.argv", ["gpu_check", "--out", str(out), "--parts", str(ground / "parts"), *more])
    code = command.main()
    files = sorted(out.glob("*.json")) if out.exists() else []
    return code, files


def test_a_measurement_that_dies_costs_itself_and_a_second_run_does_what_is_missing(ground, monkeypatch):
    code, (file,) = _run(ground, monkeypatch, "--commit", "0123")
    first = read(file)
    assert code == 1
    assert (ground / "log").read_text().split() == ["goal", "fatal", "one", "two"]
    assert first.done == ["goal", "one", "two"]
    assert "its process ended with -6" in first.missed["fatal"]
    assert [proof.failures for proof in first.proofs if proof.name == "test_cuda_rows"] == [("it broke",)]
    assert any("memcheck" in note and "out of time" in note for note in first.notes)

    (ground / "mended").write_text("")
    monkeypatch.setattr(
        check.proofs, "run_tests", lambda names, *_: [(name, Proof(name, 1.0, 3, 0, ())) for name in names]
    )
    code, files = _run(ground, monkeypatch, "--commit", "4567", "--resume", str(file))
    again = read(file)
    assert (code, files) == (0, [file])
    assert (ground / "log").read_text().split()[4:] == ["fatal"]
    assert (again.commit, again.missed, again.done) == ("4567", {}, ["goal", "one", "two", "fatal"])
    assert len(again.proofs) == len(first.proofs)
    assert [each["name"] for each in again.tactics] == again.done


def test_what_was_found_of_kernels_goes_along_to_the_run_that_goes_on(ground, monkeypatch):
    _, (file,) = _run(ground, monkeypatch)
    (file.parent / check.TACTICS / "tactics-0.json").write_text("found")
    monkeypatch.setattr("sys.argv", ["gpu_check", "--out", str(ground / "later"), "--resume", str(file)])
    command.main()
    assert (ground / "later" / check.TACTICS / "tactics-0.json").read_text() == "found"
    said = (ground / "shared").read_text().split()
    assert said == [str(ground / "out" / check.TACTICS), str(ground / "later" / check.TACTICS)]


def test_without_a_library_tests_are_told_and_nothing_is_measured(ground, monkeypatch):
    def none():
        raise SpliceError(ErrorCode.MISSING_PART, "no CUDA kernels")

    monkeypatch.setattr(check, "Library", none)
    code, (file,) = _run(ground, monkeypatch)
    assert code == 1
    assert read(file).errors == ["nothing was measured: missing_part: no CUDA kernels"]
    assert (ground / "log").read_text() == ""


def test_a_file_of_another_gpu_is_refused_and_left_alone(ground, monkeypatch, capsys):
    _, (file,) = _run(ground, monkeypatch)
    data = json.loads(file.read_text())
    data["machine"]["gpu"] = "Another"
    other = ground / "other.json"
    other.write_text(json.dumps(data))
    code, _ = _run(ground, monkeypatch, "--resume", str(other))
    assert code == 1
    assert "gpu was Another and is A GPU" in capsys.readouterr().err
    assert json.loads(other.read_text()) == data


def test_without_a_gpu_nothing_begins(ground, monkeypatch, capsys):
    monkeypatch.setattr(check.torch.cuda, "is_available", lambda: False)
    assert _run(ground, monkeypatch) == (1, [])
    assert "--dry-run" in capsys.readouterr().err


UNPACKED = """
import sys, importlib.abc
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "msgspec" and not any(entry.endswith("/packages") for entry in sys.path):
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Hide())
from benchmarks.gpu.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize("travels", [True, False])
def test_what_travels_as_a_wheel_is_unpacked_before_anything_needs_it(tmp_path, travels):
    """A machine without msgspec, the one package of which everything here is made, with and without its wheel."""
    if travels:
        with zipfile.ZipFile(tmp_path / "any-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr("any.py", "")
    done = subprocess.run(
        [sys.executable, "-c", UNPACKED, "--parts", str(tmp_path), "--out", str(tmp_path / "out"), "--units", "none"],
        cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert ("torch" if travels else "put its wheel into") in done.stderr
    assert "Traceback" not in done.stderr
