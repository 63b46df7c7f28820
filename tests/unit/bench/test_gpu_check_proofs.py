"""Files of tests, a process each and several at once: one that breaks, dies or hangs is told of and costs no other."""

from __future__ import annotations

import shutil
import sys

import pytest

from benchmarks.gpu import proofs

FILES = {
    "test_well": "def test_it(): pass\n@pytest.mark.skip(reason='no such GPU')\ndef test_other(): pass",
    "test_bad": "def test_it(): assert 1 == 2, 'one is not two'",
    "test_dies": "import os\ndef test_it(): os.abort()",
}


@pytest.fixture
def tests(tmp_path, monkeypatch):
    folder = tmp_path / "tests"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / f"{name}.py").write_text(f"import pytest\npytestmark = pytest.mark.gpu\n{text}\n")
    monkeypatch.setattr(proofs, "TESTS", folder)
    return tmp_path


def test_each_file_comes_to_what_its_tests_came_to(tests):
    limits = iter([60.0, 60.0, 60.0, None])
    found = dict(proofs.run_tests([*FILES, "test_late"], tests, lambda: next(limits), 1))
    assert found["test_late"] is None
    well = found["test_well"]
    assert (well.passed, well.skipped, well.failures, well.reasons) == (1, 1, (), ("no such GPU",))
    assert "one is not two" in found["test_bad"].failures[0]
    assert found["test_dies"].failures[0].startswith("ended with -6")


def test_a_file_that_hangs_is_ended(tests):
    ((_, proof),) = proofs.run_tests(["test_well"], tests, lambda: 0.01, 1)
    assert "not done after 0 s" in proof.failures[0]


CHECKER = f"""#!/bin/sh
echo "$@" >calls
[ "$PYTORCH_NO_CUDA_MEMORY_CACHING" = 1 ] || exit 8
shift 7
{sys.executable} "$@" && exit 9
"""


def test_what_a_checker_finds_is_a_failure_of_tests_that_passed(tests, monkeypatch):
    program = tests / "compute-sanitizer"
    program.write_text(CHECKER)
    program.chmod(0o755)
    monkeypatch.setattr(proofs.shutil, "which", lambda name: str(program))
    monkeypatch.setattr(proofs, "ROOT", tests)
    ((name, proof),) = proofs.check_memory(["memcheck test_well"], tests, lambda: 60.0, 2)
    assert name == "memcheck test_well"
    assert proof.failures[0].startswith("ended with 9")
    assert "--tool memcheck --error-exitcode 9 --kernel-name kns=splice" in (tests / "calls").read_text()


def test_a_checker_that_is_not_installed_is_said(tests, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: "/nothing/of/that/name")
    with pytest.raises(FileNotFoundError, match="compute-sanitizer is not installed"):
        next(proofs.check_memory(["memcheck test_well"], tests, lambda: 60.0, 2))


def test_checked_are_files_of_kernels_of_our_own():
    names = {file.stem for file in proofs.checked_files()}
    assert {"test_cuda_rows", "test_cuda_attention", "test_cuda_latent", "test_cuda_push"} <= names
    assert not any("gemm" in name or "engine" in name for name in names)


def test_files_without_a_test_on_a_gpu_are_not_begun(tests):
    (tests / "tests" / "test_emulated.py").write_text("def test_it(): pass\n")
    assert [file.stem for file in proofs.files()] == ["test_bad", "test_dies", "test_well"]
