from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from splice.cluster.checks import check_shm
from splice.cluster.launcher import end_cluster
from splice.cluster.processes import bearing, end, identify
from splice.cluster.run_dir import ClusterState, RunDirectory
from splice.doctor import examine
from wire.errors import SpliceError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def child(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that names the run directory on its command line."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(tmp_path / "run")])
    yield process
    process.kill()
    process.wait()


def state_with(process: subprocess.Popen[bytes]) -> ClusterState:
    launcher, found = identify("launcher", process.pid), identify("router", process.pid)
    assert launcher is not None
    assert found is not None
    return ClusterState(cluster="c", launcher=msgspec.structs.replace(launcher, started=1.0), processes=(found,))


def test_the_directory_is_private(tmp_path: Path) -> None:
    run_dir = RunDirectory("c", tmp_path / "run")
    run_dir.create()
    assert stat.S_IMODE(run_dir.path.stat().st_mode) == 0o700


def test_state_survives_writing_and_reading(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    run_dir = RunDirectory("c", tmp_path / "run")
    run_dir.create()
    run_dir.write(state_with(child))
    assert run_dir.read() == state_with(child)
    run_dir.remove()
    assert run_dir.read() is None


def test_a_second_cluster_of_the_same_name_is_refused_while_the_first_lives(
    tmp_path: Path, child: subprocess.Popen[bytes]
) -> None:
    run_dir = RunDirectory("c", tmp_path / "run")
    run_dir.create()
    run_dir.write(state_with(child))
    with pytest.raises(SpliceError, match="already running"):
        RunDirectory("c", tmp_path / "run").create()
    child.kill()
    child.wait()
    RunDirectory("c", tmp_path / "run").create()


def test_another_process_with_a_recorded_pid_is_not_taken_for_ours() -> None:
    own = identify("launcher", os.getpid())
    assert own is not None
    assert own.find() is not None
    assert msgspec.structs.replace(own, started=own.started - 100).find() is None


def test_ending_a_cluster_ends_what_bears_its_mark_and_nothing_else(
    tmp_path: Path, child: subprocess.Popen[bytes]
) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as bystander:
        run_dir = RunDirectory("c", tmp_path / "run")
        ray_dir = tmp_path / "ray"
        ray_dir.mkdir()
        state = msgspec.structs.replace(state_with(child), own_ray_dir=str(ray_dir))
        assert end_cluster(run_dir, state) == []
        assert not ray_dir.exists()
        assert child.wait(5) is not None
        assert bystander.poll() is None
        bystander.kill()


def test_whoever_started_this_process_is_not_ended_with_the_cluster(tmp_path: Path) -> None:
    mark = str(tmp_path / "run")
    inner = f"from splice.cluster.processes import bearing; print([each.pid for each in bearing([{mark!r}])])"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)  # {mark}"
    done = subprocess.run([sys.executable, "-c", outer, inner], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_who_is_only_told_of_the_directory_is_not_ended_with_it(tmp_path: Path) -> None:
    sleep = "import time; time.sleep(60)"
    mark = str(tmp_path / "run")
    with subprocess.Popen([sys.executable, "-c", sleep, "down", "--run-dir", mark]) as asking:
        assert bearing([mark]) == []
        asking.kill()


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert end(bearing([str(tmp_path)]), grace_s=0.2) == []
        assert process.wait(5) == -9


def test_a_damaged_state_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(SpliceError, match=r"state\.json"):
        RunDirectory("c", tmp_path).read()


def test_too_little_shared_memory_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(SpliceError, match="remount"):
        check_shm(tmp_path, needed=1 << 60)


def test_the_doctor_finds_a_remedy_for_whatever_is_missing() -> None:
    findings = {finding.part: finding for finding in examine()}
    assert findings["torch"].verdict == "ok"
    assert findings["etcd"].verdict == "ok"
    assert all(finding.remedy for finding in findings.values() if finding.verdict != "ok")
