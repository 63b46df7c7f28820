"""What `--kv-cache-dtype auto` is: bfloat16, but float32 where every matrix and activations are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file, save_file
from test_gguf_files import SIZES, write_gguf
from tiny_models import save_llama

from engine.loader import DtypeChoice, load_model
from engine.ops.names import OpsChoice


def found(path: Path, dtype: DtypeChoice = "float32", ops: OpsChoice = "auto") -> str:
    model = load_model(path, served_name=None, dtype=dtype, max_model_len=None, ops=ops).model
    return str(model.kv_layout(32, "auto").dtype)


@pytest.mark.parametrize("ops", ["auto", "reference"])
@pytest.mark.parametrize("kind", [None, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_1], ids=str)
def test_of_gguf_files(tmp_path: Path, kind: Kind | None, ops: OpsChoice) -> None:
    write_gguf(tmp_path / "m.gguf", tmp_path, save_llama(tmp_path, **SIZES), kind)
    assert found(tmp_path / "m.gguf", ops=ops) == ("float32" if kind is None else "bfloat16")


def test_one_narrow_matrix_is_enough(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", tmp_path, save_llama(tmp_path, **SIZES), None, k_kind=Kind.F16)
    assert found(tmp_path / "m.gguf") == "bfloat16"


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_of_directories(tmp_path: Path, stored: torch.dtype) -> None:
    save_llama(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({name: tensor.to(stored) for name, tensor in load_file(file).items()}, file)
    assert found(tmp_path) == ("float32" if stored == torch.float32 else "bfloat16")
    assert found(tmp_path, "bfloat16") == "bfloat16"


def test_vectors_do_not_count(tmp_path: Path) -> None:
    save_llama(tmp_path, attention_bias=True)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file({name: each if each.ndim == 2 else each.bfloat16() for name, each in tensors.items()}, file)
    assert found(tmp_path) == "float32"
