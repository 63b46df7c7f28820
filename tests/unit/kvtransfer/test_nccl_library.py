"""The face over NCCL, called against a library that says what it was called with, and against the real one if it is
here: that needs no GPU until a communicator is made."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from compiled_fakes import compiled, cuda_headers

from kvtransfer import nccl_library
from kvtransfer.nccl_library import NcclError, NcclLibrary, why_missing


def _built(folder: Path, version: int) -> str:
    """Compared with nccl.h where that is, and the header of CUDA that it wants."""
    try:
        package = importlib.util.find_spec("nvidia.nccl")
    except ModuleNotFoundError:
        package = None
    nccl = [Path(place) / "include" for place in (package and package.submodule_search_locations) or ()]
    cuda = cuda_headers("cuda_runtime.h")
    found = [f"-I{place}" for place in (*nccl, cuda)] if cuda else []
    return compiled("nccl.cpp", folder / f"libnccl-{version}.so", f"-DNCCL_SAYS={version}", *found)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _built(tmp_path_factory.mktemp("nccl"), 22_703)


def _calls(path: str) -> str:
    told = ctypes.CDLL(path).nccl_calls
    told.restype = ctypes.c_char_p
    return told().decode()


def test_a_communicator_is_made_without_blocking_and_waited_for(path: str) -> None:
    library = NcclLibrary(path)
    assert library.version == 22_703
    unique_id = library.new_id()
    assert unique_id == bytes(255 - i for i in range(128))
    made = library.join(unique_id, 1)
    assert [library.is_settled(made), library.is_settled(made)] == [False, True]
    library.abort(made)
    with pytest.raises(NcclError, match=r"ncclCommInitRankConfig: invalid argument \(what it saw last\)"):
        library.join(unique_id, 0)
    with pytest.raises(NcclError, match="expected 128"):
        library.join(unique_id[:-1], 1)


def test_a_group_names_every_span_and_ends_also_where_a_call_is_refused(path: str) -> None:
    library = NcclLibrary(path)
    made = library.join(library.new_id(), 1)
    before = len(_calls(path))
    library.send(made, 0, [0x1000, 0x7FFF_0000_0000_2000], 4096, 0x77)
    library.receive(made, 0, [0x3000], 4096, 0x77)
    with pytest.raises(NcclError, match="ncclSend: invalid argument"):
        library.send(made, 0, [0x1000, 0x2000], 13, 0x77)
    assert _calls(path)[before:].split(";")[:-1] == [
        "send 1000 4096 1 0 1 77",
        "send 7fff000000002000 4096 1 0 1 77",
        "end",
        "receive 3000 4096 1 0 1 77",
        "end",
        "send 1000 13 1 0 1 77",
        "end",
    ]
    library.abort(made)


def test_the_death_of_a_peer_is_raised_in_nccls_words(path: str) -> None:
    library = NcclLibrary(path)
    made = library.join(library.new_id(), 1)
    ctypes.CDLL(path).nccl_break(ctypes.c_void_p(made))
    with pytest.raises(NcclError, match="remote process exited"):
        library.is_settled(made)
    library.abort(made)


def test_a_machine_without_nccl_or_with_an_old_one_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nccl_library, "_found", lambda: str(tmp_path / "libnccl.so.2"))
    assert "pip install nvidia-nccl-cu13" in why_missing()
    old = _built(tmp_path, 21_600)
    monkeypatch.setattr(nccl_library, "_found", lambda: old)
    assert "is NCCL 21600, expected 21700 or later" in why_missing()


def test_the_real_library_gives_ids_on_the_loopback_and_says_that_there_is_no_device() -> None:
    if why_missing():
        pytest.skip(why_missing())
    # In a process of its own: what its environment says is read once.
    code = """
from kvtransfer.nccl_library import NcclError, NcclLibrary, keep_to_loopback
keep_to_loopback()
library = NcclLibrary()
unique_id = library.new_id()
assert bytes((127, 0, 0, 1)) in unique_id
assert library.new_id() != unique_id
try:
    made = library.join(unique_id, 0)
except NcclError as error:
    print("refused:", error)
else:
    library.abort(made)
    print("made")
"""
    command = [sys.executable, "-c", code]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NCCL_")}
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)
    assert told.stdout.startswith(("refused: ncclCommInitRankConfig: ", "made"))
