"""A worker's model and memory come at the same time, and go together where one of them cannot be had."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny_model import write_tiny_model
from wire.errors import ErrorCode, SpliceError
from worker.body import build_body
from worker.settings import WorkerSettings


def pools() -> int:
    """Descriptors of KV pools in this process, those left out that nobody uses any more."""
    gc.collect()
    found = 0
    for entry in os.scandir("/proc/self/fd"):
        try:
            found += "splice-kv-pool" in os.readlink(entry.path)
        except FileNotFoundError:  # the descriptor of this very listing
            continue
    return found


def settings(model: Path, **chosen: object) -> WorkerSettings:
    return WorkerSettings(role="decode", model_path=str(model), max_model_len=64, **chosen)  # type: ignore[arg-type]


def test_a_body_has_the_blocks_it_was_asked_for(tmp_path: Path) -> None:
    before = pools()
    body = build_body(settings(write_tiny_model(tmp_path), num_kv_blocks=5))
    assert (body.place.pool.num_blocks, body.layout) == (5, body.loaded.model.kv_layout(32, "auto"))
    assert pools() > before
    body.place.pool.close()
    del body  # the last views of the memory
    assert pools() == before


def test_a_model_that_cannot_be_loaded_leaves_no_memory_behind(tmp_path: Path) -> None:
    weights = write_tiny_model(tmp_path) / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"] = torch.zeros(3)
    save_file(tensors, weights)
    before = pools()
    with pytest.raises(SpliceError, match=r"model\.norm\.weight"):
        build_body(settings(tmp_path))
    assert pools() == before


def test_a_pool_that_leaves_no_room_for_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_tiny_model(tmp_path)
    weights = (model / "model.safetensors").stat().st_size
    pool = 1 << 20

    class Machine:
        available = pool + weights // 2

    monkeypatch.setattr(psutil, "virtual_memory", Machine)
    before = pools()
    with pytest.raises(SpliceError, match=f"{weights} of them for weights") as refused:
        build_body(settings(model, kv_cache_bytes=pool))
    assert refused.value.code is ErrorCode.BAD_SETTING
    assert pools() == before
