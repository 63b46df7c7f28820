"""Compiling for a check: every source by itself, what fails is said and the rest is linked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.gpu import units
from benchmarks.gpu.units import Unit, compile_all, cutlass_headers
from engine.ops.cuda.sources import sources_digest

NVCC = """#!/bin/sh
echo "$@" >> "$CALLS"
while [ $# -gt 1 ]; do
    case "$1" in
        -o) out=$2 ;;
        *broken.cu) echo "broken.cu(7): error: no such thing"; exit 1 ;;
    esac
    shift
done
echo "ptxas info    : Used 40 registers"
echo "ptxas info    : Used 24 registers, 8 bytes spill stores"
: > "$out"
"""
UNITS = [Unit("rows", ("status", "norm", "broken"), ("80", "90")), Unit("wide", ("wide",), ("90a",))]


@pytest.fixture
def calls(tmp_path, monkeypatch):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(NVCC)
    nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join((str(nvcc.parent), os.environ["PATH"])))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setattr(units, "LIBRARY", tmp_path / "library.so")
    return lambda: (tmp_path / "calls").read_text().splitlines()


def test_a_source_that_does_not_compile_costs_no_other(calls, tmp_path):
    done = {one.name: one for one in compile_all(UNITS, "90", Path("/headers"), tmp_path / "out", 2)}
    assert list(done) == ["status", "norm", "broken", "wide"]
    assert done["broken"].error is not None
    assert "no such thing" in done["broken"].error
    assert (done["norm"].registers, done["norm"].spilled_bytes, done["norm"].error) == (40, 8, None)
    linked = next(call for call in calls() if "-shared" in call)
    assert [Path(word).stem for word in linked.split() if word.endswith(".o")] == ["status", "norm", "wide"]
    assert (tmp_path / "library.so").exists()


def test_the_status_says_what_the_library_was_built_from_and_for(calls, tmp_path):
    compile_all(UNITS, "90", None, tmp_path / "out", 1)
    status, norm = (next(call for call in calls() if f"{name}.cu" in call) for name in ("status", "norm"))
    assert f"-DSPLICE_CUDA_SOURCES={sources_digest()}" in status
    assert "-DSPLICE_CUDA_TARGETS=sm_90 sm_90a" in status
    assert "SPLICE_CUDA_SOURCES" not in norm


def test_a_unit_for_other_gpus_is_left_out_and_says_so(calls, tmp_path):
    done = {one.name: one for one in compile_all(UNITS, "80", None, tmp_path / "out", 1)}
    assert done["wide"].error == "is for sm_90a, this is sm_80"
    assert not any("wide.cu" in call for call in calls())


def test_headers_are_found_in_a_folder_or_named_as_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no headers of CUTLASS and no nvidia_cutlass"):
        cutlass_headers(tmp_path, tmp_path)
    (tmp_path / "include" / "cutlass").mkdir(parents=True)
    (tmp_path / "include" / "cutlass" / "cutlass.h").write_text("")
    assert cutlass_headers(tmp_path, tmp_path) == tmp_path / "include"
