"""Compiling for a check: every source by itself, what fails is said and the rest is linked."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from benchmarks.gpu import units
from benchmarks.gpu.units import Compiled, Unit, already_built, compile_all, cutlass_headers
from engine.ops.cuda.sources import sources_digest
from engine.ops.cuda.structs import ABI

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


def test_what_does_not_link_is_said_beside_what_compiled(calls, tmp_path, monkeypatch):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.write_text(NVCC.replace("while", 'case "$1" in -shared) echo "undefined symbol"; exit 1 ;; esac\nwhile', 1))
    done = compile_all(UNITS, "90", None, tmp_path / "out", 2)
    assert [one.name for one in done if one.error is None] == ["status", "norm", "wide"]
    assert done[-1].name == "link"
    assert "undefined symbol" in str(done[-1].error)
    assert not (tmp_path / "library.so").exists()
    nothing = compile_all([Unit("wide", ("broken",), ("90",))], "90", None, tmp_path / "out", 1)
    assert nothing[-1].error == "no source was compiled"


def test_some_units_alone_come_with_what_no_library_can_be_without():
    (base, draws) = units.chosen_units(["draws_blocks"])
    assert base.sources == ("status",)
    assert (draws.name, "kv_copy" in draws.sources) == ("draws_blocks", True)
    assert units.chosen_units([]) == units.units()
    assert [unit.name for unit in units.chosen_units(["rows"])] == ["rows"]
    with pytest.raises(ValueError, match="no nonsense, expected some of"):
        units.chosen_units(["nonsense"])


def test_what_needs_a_source_that_did_not_compile_is_left_out_too(tmp_path):
    """A library with an undefined symbol cannot be opened, and would cost everything."""
    texts = {
        "base": "int splice_base(void) { return 1; }",
        "user": "int splice_base(void); int splice_user(void) { return splice_base(); }",
        "needy": "int splice_lost(void); int splice_needy(void) { return splice_lost(); }",
        "needier": "int splice_needy(void); int splice_needier(void) { return splice_needy() + printf(0); }",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.c").write_text(f"#include <stdio.h>\n{text}\n")
        files = [str(tmp_path / f"{name}.c"), "-o", str(tmp_path / f"{name}.o")]
        subprocess.run(["cc", "-fPIC", "-c", *files], check=True)
    done = [Compiled(name, 1.0, 0, 0) for name in texts] + [Compiled("lost", 1.0, 0, 0, "error: no such thing")]
    found = {one.name: one.error for one in units.without_needy(done, tmp_path)}
    assert (found["base"], found["user"], found["lost"]) == (None, None, "error: no such thing")
    assert found["needy"] == "needs splice_lost, whose source was not compiled"
    assert found["needier"] == "needs splice_needy, whose source was not compiled"


def _library(tmp_path, monkeypatch, digest: str, targets: str, functions: set[str]) -> None:
    text = f"""
        int splice_cuda_abi(void) {{ return {ABI}; }}
        int splice_cuda_emulated(void) {{ return 0; }}
        int splice_cuda_runtime(void) {{ return 13000; }}
        const char* splice_cuda_error(void) {{ return ""; }}
        const char* splice_cuda_sources(void) {{ return "{digest}"; }}
        const char* splice_cuda_targets(void) {{ return "{targets}"; }}
    """
    text += "".join(f"int splice_cuda_{name}(void) {{ return 0; }}\n" for name in functions)
    library = tmp_path / f"library-{len(list(tmp_path.glob('library-*')))}.so"
    (tmp_path / "library.c").write_text(text)
    subprocess.run(["cc", "-fPIC", "-shared", str(tmp_path / "library.c"), "-o", str(library)], check=True)
    monkeypatch.setattr(units, "LIBRARY", library)


def test_a_library_of_these_sources_for_this_gpu_with_every_function_is_taken_as_it_is(tmp_path, monkeypatch):
    every = {name for path in units.SOURCES.glob("*.cu") for name in units.launches(path.read_text())}
    assert "gemm_sm90" in every
    monkeypatch.setattr(units, "LIBRARY", tmp_path / "none.so")
    assert already_built(units.units(), "90") is None
    for digest, targets, functions, is_there in (
        (sources_digest(), "sm_80 sm_90 sm_90a", every, True),
        ("0123456789abcdef", "sm_80 sm_90 sm_90a", every, False),
        (sources_digest(), "sm_80", every, False),
        (sources_digest(), "sm_80 sm_90 sm_90a", every - {"gemm_sm90"}, False),
    ):
        _library(tmp_path, monkeypatch, digest, targets, functions)
        assert (already_built(units.units(), "90") is not None) is is_there


def test_headers_are_found_in_a_folder_or_named_as_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no headers of CUTLASS and no nvidia_cutlass"):
        cutlass_headers(tmp_path, tmp_path)
    (tmp_path / "include" / "cutlass").mkdir(parents=True)
    (tmp_path / "include" / "cutlass" / "cutlass.h").write_text("")
    assert cutlass_headers(tmp_path, tmp_path) == tmp_path / "include"
