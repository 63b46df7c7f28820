"""GGUF files of mixtures of experts give the logits of their weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, get_args

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from moe_gguf_files import MODELS, WIDE, save_reference, write_moe_gguf
from tiny_models import PagedRun

from engine.formats.gguf_file import GgufFile
from engine.formats.gguf_weights import GgufWeights
from engine.loader import load_model
from engine.models.architecture import Architecture
from engine.models.gpt_oss import GPT_OSS
from engine.models.qwen3_moe import QWEN3_MOE
from engine.ops.names import Activations
from engine.ops.native_kernels import QUANTISED_KINDS
from engine.weights import StoredMatrix
from wire.errors import ErrorCode, SpliceError

PROMPT = 40
TOKENS = torch.randint(0, 320, (PROMPT + 5,), generator=torch.Generator().manual_seed(3)).tolist()


def _assert_same_logits(path: Path, reference: Any) -> None:
    model = load_model(path, served_name=None, dtype="float32", max_model_len=None, activations="float32").model
    with torch.inference_mode():
        expected = reference(torch.tensor([TOKENS])).logits[0]
    run = PagedRun(model, 4, "float32", prompts={0: PROMPT})
    for first, last in [(0, PROMPT), (PROMPT, PROMPT + 5)]:
        logits = run.step([(0, first, TOKENS[first:last])])[0]
        assert (logits - expected[last - 1]).abs().max() / expected[last - 1].abs().max() < 1e-4


@pytest.mark.parametrize("kind", MODELS)
def test_logits_equal_those_of_transformers(tmp_path: Path, kind: str) -> None:
    reference = save_reference(tmp_path, kind, **({} if "deepseek" in kind else {"head_dim": 16}))
    write_moe_gguf(tmp_path / "m.gguf", kind, reference)
    _assert_same_logits(tmp_path / "m.gguf", reference)


@pytest.mark.parametrize(
    ("kind", "quantised"),
    [("qwen3moe", Kind.Q8_0), ("mixtral", Kind.Q4_1), ("deepseek2-groups-old", Kind.Q4_0), ("gpt-oss", Kind.MXFP4),
     ("gpt-oss", Kind.BF16)],
)  # fmt: skip
def test_quantised_experts_give_the_logits_of_their_rounded_values(tmp_path: Path, kind: str, quantised: Kind) -> None:
    reference = save_reference(tmp_path, kind, **WIDE)
    write_moe_gguf(tmp_path / "m.gguf", kind, reference, quantised)
    _assert_same_logits(tmp_path / "m.gguf", reference)


@pytest.mark.parametrize("activations", get_args(Activations))
@pytest.mark.parametrize(("kind", "quantised"), [("qwen3moe", Kind.Q4_0), ("gpt-oss", Kind.MXFP4)])
def test_experts_multiplied_packed_give_a_token_the_same_bits_in_any_company(
    tmp_path: Path, kind: str, quantised: Kind, activations: Activations
) -> None:
    write_moe_gguf(tmp_path / "m.gguf", kind, save_reference(tmp_path, kind, **WIDE), quantised)
    model = load_model(
        tmp_path / "m.gguf", served_name=None, dtype="float32", max_model_len=None, activations=activations
    ).model
    alone, beside = PagedRun(model, 2), PagedRun(model, 8)
    expected = alone.step([(0, 0, TOKENS)])[0]
    for first, last in [(0, 1), (1, 12), (12, 44), (44, 45)]:
        parts = [(0, first, TOKENS[first:last]), *((other, first, TOKENS[-last:][: last - first]) for other in (1, 2))]
        found = beside.step(parts)[0]
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("architecture", "kind", "quantised", "columns"),
    [(QWEN3_MOE, "qwen3moe", Kind.Q8_0, 32), (GPT_OSS, "gpt-oss", Kind.MXFP4, 96)],
)
def test_experts_stay_in_the_precision_of_their_file(
    tmp_path: Path, architecture: Architecture, kind: str, quantised: Kind, columns: int
) -> None:
    reference = save_reference(tmp_path, kind, **WIDE)
    write_moe_gguf(tmp_path / "m.gguf", kind, reference, quantised)
    file = GgufFile(tmp_path / "m.gguf")
    weights = GgufWeights(file, partial(architecture.gguf_tensor, architecture.read_gguf(file)))
    name, shape = "model.layers.1.mlp.experts.3.down_proj.weight", (64, columns)
    packed = weights.take_matrix(name, shape, QUANTISED_KINDS)
    elements, size = gguf.GGML_QUANT_SIZES[quantised]
    assert isinstance(packed, StoredMatrix)
    assert (packed.kind, packed.shape) == (quantised.name.lower(), shape)
    assert packed.data.shape == (64, columns // elements * size)
    values = gguf.quants.dequantize(packed.data, quantised)
    assert np.array_equal(values, weights.take(name, shape))
    expected = reference.model.layers[1].mlp.experts.down_proj[3].detach().numpy()
    assert np.array_equal(values, expected.T if kind == "gpt-oss" else expected)


@pytest.mark.parametrize(
    ("kind", "overrides", "named"),
    [
        ("qwen3moe", {"expert_count": 7}, "ffn_gate_inp"),
        ("qwen3moe", {"expert_used_count": 9}, "top_k 9"),
        ("deepseek2-groups-old", {"expert_gating_func": 3}, "expert_gating_func"),
        ("deepseek2-groups-old", {"expert_group_count": 3}, "not a multiple"),
        ("deepseek2-groups-old", {"rope.dimension_count": 16}, "qk_nope_head_dim"),
    ],
)
def test_metadata_that_fits_no_weights_is_named(
    tmp_path: Path, kind: str, overrides: dict[str, Any], named: str
) -> None:
    write_moe_gguf(tmp_path / "m.gguf", kind, save_reference(tmp_path, kind, **WIDE), **overrides)
    with pytest.raises(SpliceError, match=named) as refused:
        load_model(tmp_path / "m.gguf", served_name=None, dtype="float32", max_model_len=None)
    assert refused.value.code is ErrorCode.BAD_MODEL_FILE
