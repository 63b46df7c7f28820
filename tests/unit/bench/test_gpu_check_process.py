"""Measurements in a process of their own, followed by this one: one that dies, hangs or lies costs its task alone."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks.gpu.measuring import Outcome, outcomes
from benchmarks.gpu.parts import fits, unpack_wheels

SCRIPT = """
import faulthandler, json, os, sys, time
faulthandler.enable()
say = lambda line: print(json.dumps(line), flush=True)
for index in range(int(sys.argv[1]), 5):
    say({"begun": index})
    if index == 1 and BEHAVIOUR == "die":
        print("an illegal memory access", file=sys.stderr, flush=True)
        os.abort()
    if index == 1 and BEHAVIOUR == "hang":
        print("waiting for ever", flush=True)
        time.sleep(600)
    if index == 1 and BEHAVIOUR == "lost":
        say({"index": 1, "error": "CUDA error"})
        sys.exit(3)
    if BEHAVIOUR == "noise":
        print('{"half a line', "{}", '["begun"]', sep="\\n", flush=True)
    say({"index": index, "result": index * 10})
"""
WELL = [Outcome(index, index * 10) for index in range(5)]


def _run(behaviour, tmp_path, limit=lambda index: 30.0):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("BEHAVIOUR", repr(behaviour)))
    return list(outcomes(lambda first: (sys.executable, str(script), str(first)), limit, 5, tmp_path))


@pytest.mark.parametrize("behaviour", ["well", "noise"])
def test_every_task_has_its_result_in_order(tmp_path, behaviour):
    assert _run(behaviour, tmp_path) == WELL


def test_a_task_that_kills_its_process_is_the_only_one_without_a_result(tmp_path):
    found = _run("die", tmp_path)
    assert [each for each in found if each.index != 1] == [each for each in WELL if each.index != 1]
    assert found[1].error is not None
    assert "its process ended with -6" in found[1].error
    assert "an illegal memory access" in found[1].error


def test_a_task_that_hangs_is_ended_and_the_others_follow(tmp_path):
    found = _run("hang", tmp_path, lambda index: 0.5 if index == 1 else 30.0)
    assert [each.index for each in found] == [0, 1, 2, 3, 4]
    assert found[1].error.startswith("not done after 0 s; its last words: waiting for ever")
    assert "script.py" in found[1].error
    assert found[4] == WELL[4]


def test_a_process_that_lost_its_device_is_followed_by_another(tmp_path):
    found = _run("lost", tmp_path)
    assert found[1] == Outcome(1, error="CUDA error")
    assert found[2:] == WELL[2:]


def test_what_there_is_no_time_for_is_said_and_not_begun(tmp_path):
    found = _run("well", tmp_path, lambda index: None if index >= 3 else 30.0)
    assert found[:3] == WELL[:3]
    assert [each.error for each in found[3:]] == ["not measured: out of time"] * 2


def test_a_process_that_cannot_begin_costs_each_task_its_error(tmp_path):
    found = list(
        outcomes(lambda first: (sys.executable, "-c", "import nothing_of_that_name"), lambda _: 5.0, 2, tmp_path)
    )
    assert [each.index for each in found] == [0, 1]
    assert all("nothing_of_that_name" in str(each.error) for each in found)


def _tag(shift: int = 0) -> str:
    return f"cp{sys.version_info.major}{sys.version_info.minor + shift}"


@pytest.mark.parametrize(
    ("wheel", "is_ours"),
    [
        ("a-1.0-py3-none-any.whl", True),
        ("a-1.0-py2.py3-none-any.whl", True),
        (f"a-1.0-{_tag()}-{_tag()}-manylinux_2_17_{os.uname().machine}.whl", True),
        (f"a-1.0-{_tag(1)}-{_tag(1)}-manylinux_2_17_{os.uname().machine}.whl", False),
        (f"a-1.0-cp39-abi3-manylinux_2_17_{os.uname().machine}.whl", True),
        (f"a-1.0-{_tag(1)}-abi3-manylinux_2_17_{os.uname().machine}.whl", False),
        (f"a-1.0-{_tag()}-{_tag()}-manylinux_2_17_sparc.whl", False),
        ("broken.whl", False),
    ],
)
def test_wheels_of_this_python_and_machine_are_told_from_others(wheel, is_ours):
    assert fits(wheel) is is_ours


def test_wheels_are_seen_by_this_process_and_those_it_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "/before")
    for name in ("carried_part-2.0-py3-none-any", "nvidia_cutlass-4.2-py3-none-any", "other-1-cp20-cp20-any"):
        with zipfile.ZipFile(tmp_path / f"{name}.whl", "w") as wheel:
            wheel.writestr(f"{name.partition('-')[0]}.py", "VALUE = 7\n")
    assert unpack_wheels(tmp_path, tmp_path / "scratch") == ["carried_part-2.0"]
    assert __import__("carried_part").VALUE == 7
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(tmp_path / "scratch" / "packages"), "/before"]
    assert not Path(tmp_path, "scratch", "packages", "nvidia_cutlass.py").exists()
