"""What `splice doctor` says of the ways KV goes between GPUs."""

from __future__ import annotations

import pytest

from kvtransfer import registry
from splice import doctor
from splice.settings.groups import GPU_TRANSPORTS, TRANSPORTS


def _said(monkeypatch: pytest.MonkeyPatch, driver: str = "", nccl: str = "", ucx: str = "") -> dict[str, str]:
    monkeypatch.setattr(doctor.cuda_runtime, "why_missing", lambda: driver)
    monkeypatch.setattr(doctor.nccl_library, "why_missing", lambda: nccl)
    monkeypatch.setattr(doctor.ucx_library, "why_no_cuda", lambda: ucx)
    return {each.part: each.remedy for each in doctor.examine_transports() if each.verdict != "ok"}


def test_without_a_driver_it_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _said(monkeypatch, "no CUDA driver", "no NCCL") == {
        "KV between GPUs": "no CUDA driver; only pools on a GPU need it"
    }


def test_with_one_each_transport_is_named_with_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _said(monkeypatch) == {}
    assert [each.part for each in doctor.examine_transports()] == ["cuda_ipc", "nccl", "ucx on GPUs", "shm on GPUs"]
    assert _said(monkeypatch, "", "no NCCL", "built without CUDA") == {
        "nccl": "no NCCL; the next one is taken meanwhile",
        "ucx on GPUs": "built without CUDA; the next one is taken meanwhile",
    }


def test_transports_that_are_chosen_from_are_all_known() -> None:
    assert set(GPU_TRANSPORTS) == {*registry.DEVICE_LINKS, "tcp"} | {"ucx"}
    assert set(TRANSPORTS) <= {*registry.SOURCES, *registry.MISSING}
