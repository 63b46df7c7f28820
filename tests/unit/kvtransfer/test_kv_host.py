"""When two processes count as on one host: for descriptors, for process ids, and for CUDA's mappings."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from kvtransfer import host
from kvtransfer.host import host_id, ipc_namespace, pid_space


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts this process into another namespace of a kind."""
    real = os.readlink

    def enter(kind: str) -> None:
        monkeypatch.setattr(
            host.os, "readlink", lambda path: f"{kind}:[1]" if path.endswith(f"/{kind}") else real(path)
        )

    return enter


@pytest.mark.parametrize(
    ("kind", "differs"),
    [("user", {"host"}), ("net", {"host"}), ("ipc", {"ipc"}), ("pid", {"pid"})],
)
def test_each_namespace_parts_what_depends_on_it_and_nothing_else(
    kind: str, differs: set[str], elsewhere: Callable[[str], None]
) -> None:
    here = {"host": host_id(), "pid": pid_space(), "ipc": ipc_namespace()}
    elsewhere(kind)
    there = {"host": host_id(), "pid": pid_space(), "ipc": ipc_namespace()}
    assert {name for name in here if here[name] != there[name]} == differs
