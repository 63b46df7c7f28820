"""What building from source fetches: CUTLASS where CUDA kernels can or must be compiled, nothing for them elsewhere."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

pytest.importorskip("scikit_build_core", reason="the build tools are not installed here")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def backend(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "cmake"))
    return importlib.import_module("build_backend")


@pytest.fixture
def with_nvcc(monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))


def test_a_plain_install_with_nvcc_fetches_cutlass(backend, with_nvcc):
    assert backend.cuda_requires(None) == [backend.CUTLASS]


@pytest.mark.parametrize(
    "settings",
    [{"cmake.define.SPLICE_CUDA": "off"}, {"wheel.cmake": "false"}, {"cmake.define.CUTLASS_ROOT": "/headers"}],
)
def test_settings_that_need_no_headers_fetch_none(backend, with_nvcc, settings):
    assert backend.cuda_requires(settings) == []


def test_on_fetches_cutlass_whatever_is_found(backend, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    assert backend.cuda_requires({}) == []
    assert backend.cuda_requires({"cmake.define.SPLICE_CUDA": "on"}) == [backend.CUTLASS]
