"""What is looked for in headers is what loading takes, no more and no less, and a file that lacks it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn_weights import ATTENTION, DrawnWeights
from moe_models import MODELS as EXPERTS
from moe_models import save_moe
from safetensors.torch import load_file, save_file
from test_architecture_parity import MODELS
from test_compiled_features import SPECS, with_attention, with_mlps
from tiny_models import save_llama, save_model

from engine.layers.torch_weights import TorchWeights
from engine.loader import check_model, load_model
from engine.models.decoder import Decoder
from engine.models.native_decoder import NativeDecoder
from engine.models.needed_tensors import needed_tensors
from engine.ops.features import features_of
from engine.ops.registry import select_ops
from engine.rope_spec import RopeSpec
from engine.spec import LatentAttentionSpec, ModelSpec
from engine.weights import StoredMatrix
from wire.errors import ErrorCode, SpliceError

LATENT = LatentAttentionSpec(4, 24, 20, 10, 6, 12, RopeSpec(10000.0), 0.25, bias=True)
ALL: dict[str, ModelSpec] = {
    **SPECS,
    "every part of attention": with_attention(ATTENTION, post=True),
    "latents": with_attention(LATENT),  # type: ignore[arg-type]
    "latents of queries as they are": with_attention(LatentAttentionSpec(4, None, 20, 10, 6, 12, RopeSpec(1e4), 0.25)),  # type: ignore[arg-type]
    "experts": with_mlps(SPECS["groups of experts, shared ones"].layers[1].mlp),
}


class Taken(DrawnWeights):
    """What was asked for."""

    def __init__(self) -> None:
        super().__init__(lambda name: "float32")
        self.tensors: list[tuple[str, tuple[int, ...]]] = []

    def take(self, name: str, shape: tuple[int, ...]) -> Any:
        self.tensors.append((name, shape))
        return np.ones(shape, np.float32)

    def take_matrix(self, name: str, shape: tuple[int, int], kinds: frozenset[str]) -> StoredMatrix:
        return StoredMatrix("float32", shape, self.take(name, shape))


@pytest.mark.parametrize("name", ALL)
def test_both_ways_of_computing_take_the_needed_tensors_once(name: str) -> None:
    spec = ALL[name]
    native, opwise = Taken(), Taken()
    NativeDecoder(spec, native, 50, "float32")
    ops = select_ops(torch.float32, "reference", features_of(spec))
    Decoder(spec, ops, TorchWeights(opwise, torch.float32), 50)
    needed = sorted((tensor.name, tensor.shape) for tensor in needed_tensors(spec))
    assert sorted(native.tensors) == needed
    assert sorted(opwise.tensors) == needed


@pytest.mark.parametrize("kind", EXPERTS)
def test_sound_directories_of_experts_and_latents_pass(tmp_path: Path, kind: str) -> None:
    save_moe(tmp_path, kind)
    assert check_model(tmp_path) is not None


@pytest.mark.parametrize("name", ["llama", "gemma2", "phi3", "qwen2", "gemma3"])
def test_sound_dense_directories_pass(tmp_path: Path, name: str) -> None:
    save_model(tmp_path, MODELS[name]())
    assert check_model(tmp_path) is not None


@pytest.mark.parametrize("damage", ["missing", "another shape", "another type"])
def test_a_tensor_is_refused_before_anything_is_read(tmp_path: Path, damage: str) -> None:
    save_llama(tmp_path)
    name = "model.layers.1.mlp.down_proj.weight"
    tensors = load_file(tmp_path / "model.safetensors")
    tensor = tensors.pop(name)
    if damage != "missing":
        tensors[name] = tensor[1:].contiguous() if damage == "another shape" else tensor.to(torch.int8)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(SpliceError, match=name) as foretold:
        check_model(tmp_path)
    assert foretold.value.code is ErrorCode.BAD_MODEL_FILE
    with pytest.raises(SpliceError) as refused:
        load_model(tmp_path, served_name=None, dtype="float32", max_model_len=None)
    assert refused.value.message == foretold.value.message
