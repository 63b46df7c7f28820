"""What a GPU is told of a model's FP8 matrices, and where `quantization` fp8 is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fp8_files import quantise_directory
from moe_gguf_files import write_moe_gguf
from moe_models import save_moe
from tiny_models import save_llama

from engine import loader
from engine.gpu_place import GpuPlace
from engine.loader import load_model, open_model
from engine.ops.names import ActivationsChoice, QuantizationChoice
from wire.errors import ErrorCode, SpliceError

GPU = GpuPlace(index=3)


def _placed(
    path: Path, monkeypatch: pytest.MonkeyPatch, activations: ActivationsChoice, quantization: QuantizationChoice
) -> GpuPlace:
    """Where on a GPU the model would go: nothing is built."""
    found: list[GpuPlace] = []

    def build(spec: Any, weights: Any, length: int, gpu: GpuPlace) -> tuple[object, str, None]:
        found.append(gpu)
        return object(), "none", None

    monkeypatch.setattr(loader, "_build_on_gpu", build)
    load_model(
        path, served_name=None, dtype="auto", max_model_len=None, activations=activations, quantization=quantization,
        gpu=GPU,
    )  # fmt: skip
    return found[0]


@pytest.mark.parametrize(
    ("kind", "activations", "rows"),
    [
        ("fp8-blocks", "auto", "codes"),
        ("fp8-static", "auto", "codes"),
        ("fbgemm", "bfloat16", "bfloat16"),
        ("compressed-weights", "auto", "bfloat16"),
    ],
)
@pytest.mark.parametrize("quantization", ["auto", "fp8"])
def test_a_gpu_is_told_what_codes_meet_and_keeps_what_the_file_left_as_it_is(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    activations: ActivationsChoice,
    rows: Any,
    quantization: QuantizationChoice,
) -> None:
    save_llama(tmp_path)
    quantise_directory(tmp_path, tmp_path / "plain", kind)
    assert _placed(tmp_path, monkeypatch, activations, quantization) == replace(GPU, fp8_rows=rows)


@pytest.mark.parametrize(("activations", "rows"), [("auto", "codes"), ("bfloat16", "bfloat16")])
def test_matrices_in_bfloat16_become_fp8_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, activations: ActivationsChoice, rows: Any
) -> None:
    save_llama(tmp_path)
    assert _placed(tmp_path, monkeypatch, activations, "fp8") == replace(GPU, fp8_rows=rows, quantises=True)
    assert _placed(tmp_path, monkeypatch, activations, "auto") == GPU


def test_codes_are_counted_as_what_a_cpu_makes_of_them(tmp_path: Path) -> None:
    save_llama(tmp_path)
    quantise_directory(tmp_path, tmp_path / "plain", "fp8-blocks")
    size = (tmp_path / "model.safetensors").stat().st_size
    taken = [
        open_model(tmp_path, served_name=None, dtype="auto", max_model_len=None, gpu=gpu).weight_bytes
        for gpu in (None, GPU)
    ]
    assert taken == [2 * size, size]


def test_int8_activations_with_fp8_matrices_are_refused_on_a_gpu(tmp_path: Path) -> None:
    save_llama(tmp_path)
    quantise_directory(tmp_path, tmp_path / "plain", "fp8-blocks")
    with pytest.raises(SpliceError, match="use auto or bfloat16") as refused:
        load_model(tmp_path, served_name=None, dtype="auto", max_model_len=None, activations="int8", gpu=GPU)
    assert (refused.value.code, refused.value.param) == (ErrorCode.BAD_SETTING, "activations")


def _refused(path: Path, gpu: GpuPlace | None) -> str:
    with pytest.raises(SpliceError) as refused:
        load_model(path, served_name=None, dtype="auto", max_model_len=None, quantization="fp8", gpu=gpu)
    assert (refused.value.code, refused.value.param) == (ErrorCode.BAD_SETTING, "quantization")
    return refused.value.message


def test_quantising_is_refused_where_nothing_would_come_of_it(tmp_path: Path) -> None:
    save_llama(tmp_path)
    assert "--device cuda" in _refused(tmp_path, None)
    (tmp_path / "experts").mkdir()
    write_moe_gguf(tmp_path / "m.gguf", "gpt-oss", save_moe(tmp_path / "experts", "gpt-oss"))
    assert "quantised in another way" in _refused(tmp_path / "m.gguf", GPU)
