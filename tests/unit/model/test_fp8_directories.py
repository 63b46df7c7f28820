"""Directories in FP8 are the bfloat16 models that their codes and scales stand for, to the bit; damage is named."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from fp8_files import FORMATS, change_config, change_tensor, quantise_directory
from moe_models import save_moe
from safetensors.torch import load_file
from tiny_models import PagedRun, save_llama

from engine.loader import check_model, load_model
from wire.errors import ErrorCode, SpliceError

TOKENS = list(range(7, 57))
_WIDE: dict[str, Any] = {"hidden_size": 144, "intermediate_size": 200, "head_dim": 36}
"""More than one block, and no whole number of them."""


def _logits(directory: Path, dtype: str = "float32") -> torch.Tensor:
    loaded = load_model(directory, served_name=None, dtype=dtype, max_model_len=None)  # type: ignore[arg-type]
    return PagedRun(loaded.model, 2).step([(0, 0, TOKENS)])[0]


def _save(directory: Path, architecture: str) -> None:
    if architecture == "llama":
        save_llama(directory, **_WIDE)
    elif architecture == "deepseek-v3":  # heads of kv_b_proj begin within blocks, and turning pairs lie across two
        save_moe(
            directory, "deepseek-v3", hidden_size=144, kv_lora_rank=136, qk_nope_head_dim=58, qk_rope_head_dim=16,
            v_head_dim=38, moe_intermediate_size=136, initializer_range=0.2,
        )  # fmt: skip
    else:
        save_moe(directory, architecture, hidden_size=144, moe_intermediate_size=136)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_the_model_of_the_values_it_stands_for(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    save_llama(tmp_path, **_WIDE)
    quantise_directory(tmp_path, tmp_path / "plain", kind)
    check_model(tmp_path)
    with caplog.at_level(logging.WARNING, logger="engine.loader"):
        found = _logits(tmp_path)
    assert torch.equal(found, _logits(tmp_path / "plain"))
    assert "are not used" not in caplog.text


@pytest.mark.parametrize("kind", ["fp8-blocks", "compressed-channel"])
@pytest.mark.parametrize("architecture", ["qwen3-moe", "mixtral", "deepseek-v2", "deepseek-v3"])
def test_mixtures_and_latent_attention_too(tmp_path: Path, kind: str, architecture: str) -> None:
    _save(tmp_path, architecture)
    assert any("expert" in name for name in quantise_directory(tmp_path, tmp_path / "plain", kind))
    check_model(tmp_path)
    assert torch.equal(_logits(tmp_path), _logits(tmp_path / "plain"))


@pytest.mark.parametrize("architecture", ["llama", "deepseek-v3"])
def test_torch_computes_the_same_model(tmp_path: Path, architecture: str) -> None:
    _save(tmp_path, architecture)
    quantise_directory(tmp_path, tmp_path / "plain", "fp8-blocks")
    for dtype in ("float32", "bfloat16"):
        found, plain = (_logits(path, dtype) for path in (tmp_path, tmp_path / "plain"))
        assert torch.equal(found, plain)


def test_scales_may_be_bfloat16(tmp_path: Path) -> None:
    save_llama(tmp_path, **_WIDE)
    quantise_directory(tmp_path, tmp_path / "plain", "fp8-blocks", torch.bfloat16)
    assert torch.equal(_logits(tmp_path), _logits(tmp_path / "plain"))


def test_what_lies_in_bfloat16_is_that_whatever_lists_say(tmp_path: Path) -> None:
    save_llama(tmp_path, **_WIDE)
    name = "model.layers.1.mlp.down_proj.weight"
    quantise_directory(tmp_path, tmp_path / "plain", "fp8-blocks")
    change_tensor(tmp_path, name, load_file(tmp_path / "plain" / "model.safetensors")[name])
    change_tensor(tmp_path, f"{name}_scale_inv", None)
    assert torch.equal(_logits(tmp_path), _logits(tmp_path / "plain"))


NAME = "model.layers.1.self_attn.v_proj.weight"


def _refused(directory: Path) -> str:
    with pytest.raises(SpliceError) as refused:
        load_model(directory, served_name=None, dtype="float32", max_model_len=None)
    assert refused.value.code is ErrorCode.BAD_MODEL_FILE
    return refused.value.message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -0.5, 1e37])
@pytest.mark.parametrize("kind", ["fp8-blocks", "fp8-tensor", "fbgemm"])
def test_a_scale_that_makes_no_numbers_is_refused_naming_its_tensor(tmp_path: Path, kind: str, value: float) -> None:
    save_llama(tmp_path, **_WIDE)
    quantise_directory(tmp_path, tmp_path / "plain", kind)
    name = NAME + FORMATS[kind][2]
    scales = load_file(tmp_path / "model.safetensors")[name]
    scales.view(-1)[-1] = value
    change_tensor(tmp_path, name, scales)
    assert f"tensor {name} has a scale of" in _refused(tmp_path)


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_a_code_that_is_no_number_is_refused_naming_its_tensor(tmp_path: Path, code: int) -> None:
    save_llama(tmp_path, **_WIDE)
    quantise_directory(tmp_path, tmp_path / "plain", "fp8-blocks")
    codes = load_file(tmp_path / "model.safetensors")[NAME]
    codes.view(torch.uint8)[3, 130] = code
    change_tensor(tmp_path, NAME, codes)
    assert f"tensor {NAME} has an e4m3 code that is no number" in _refused(tmp_path)


@pytest.mark.parametrize("damage", ["missing", "short", "integers"])
@pytest.mark.parametrize("kind", ["fp8-blocks", "compressed-channel"])
def test_codes_without_fitting_scales_are_named_from_the_headers_alone(tmp_path: Path, kind: str, damage: str) -> None:
    save_llama(tmp_path, **_WIDE)
    quantise_directory(tmp_path, tmp_path / "plain", kind)
    name = NAME + FORMATS[kind][2]
    scales = load_file(tmp_path / "model.safetensors")[name]
    parts = {"missing": None, "short": torch.cat([scales] * 3), "integers": scales.int()}
    change_tensor(tmp_path, name, parts[damage])
    message = _refused(tmp_path)
    assert name in message
    with pytest.raises(SpliceError) as foretold:
        check_model(tmp_path)
    assert foretold.value.message == message


def test_codes_in_a_directory_that_does_not_speak_of_them_are_refused(tmp_path: Path) -> None:
    save_llama(tmp_path, **_WIDE)
    quantise_directory(tmp_path, tmp_path / "plain", "fp8-blocks")
    change_config(tmp_path, quantization_config=None)
    assert "has type F8_E4M3, expected one of F32, F16, BF16" in _refused(tmp_path)


def test_how_codes_are_meant_is_part_of_a_models_identity(tmp_path: Path) -> None:
    save_llama(tmp_path, **_WIDE)
    quantise_directory(tmp_path, tmp_path / "plain", "fp8-static")

    def digest() -> str:
        return load_model(tmp_path, served_name=None, dtype="auto", max_model_len=None).card.model_digest

    static = digest()
    change_config(tmp_path, quantization_config=FORMATS["fp8-tensor"][0])
    assert digest() != static
