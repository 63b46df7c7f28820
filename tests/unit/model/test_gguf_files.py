"""GGUF files: what is written by the format's own package computes what the model computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from tiny_models import PagedRun, byte_tokenizer, save_llama
from tokenizers import Tokenizer

from engine.formats.gguf_file import GgufFile
from engine.formats.gguf_names import gguf_name
from engine.loader import load_model
from engine.ops.names import ActivationsChoice
from wire.errors import ErrorCode, SpliceError

SIZES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "vocab_size": 320}
QUANTISED = [Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.BF16, Kind.F16]
K_QUANTISED = [Kind.Q4_K, Kind.Q5_K, Kind.Q6_K]


def _pairs_from_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """The row order of llama.cpp's converter."""
    return weight.reshape(heads, 2, len(weight) // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, directory: Path, reference: Any, kind: Kind | None = None, **overrides: Any) -> None:
    """The reference model as GGUF; matrices in `kind`, and the reference given the rounded values."""
    writer = gguf.GGUFWriter(path, "llama")
    fields: dict[str, Any] = {
        "block_count": 2, "context_length": 512, "embedding_length": 64, "feed_forward_length": 96,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 16,
        "attention.value_length": 16, "rope.dimension_count": 16,
    }  # fmt: skip
    for key, value in fields.items():
        if key not in overrides:
            writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-6)
    tokens = sorted(byte_tokenizer().get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(overrides.get("pre", "smollm"))
    writer.add_token_list([*(token for token, _ in tokens), "ab"])
    writer.add_token_types([*(3 if token in ("<s>", "</s>") else 1 for token, _ in tokens), 1])
    writer.add_token_merges(["a zz"] if overrides.get("bad_merges") else ["a b"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_add_bos_token(True)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            values = parameter.numpy()
            own = overrides.get("k_kind", kind) if "k_proj" in name else kind
            if own is not None and values.ndim == 2:
                data = gguf.quants.quantize(values, own)
                parameter.copy_(torch.from_numpy(gguf.quants.dequantize(data, own).copy()))
                values = parameter.numpy()
            for part, heads in (("q_proj", 4), ("k_proj", 2)):
                values = _pairs_from_halves(values, heads) if part in name else values
            if own is None or values.ndim == 1:
                writer.add_tensor(gguf_name(name), np.ascontiguousarray(values))
            else:
                writer.add_tensor(gguf_name(name), gguf.quants.quantize(values, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    write_gguf(tmp_path / "m.gguf", tmp_path, save_llama(tmp_path, **SIZES))
    return tmp_path / "m.gguf"


@pytest.mark.parametrize("kind", [None, *QUANTISED], ids=lambda kind: kind.name if kind else "F32")
def test_logits_equal_those_of_the_same_weights(tmp_path: Path, kind: Kind | None) -> None:
    reference = save_llama(tmp_path, **SIZES)
    write_gguf(tmp_path / "m.gguf", tmp_path, reference, kind)
    loaded = load_model(
        tmp_path / "m.gguf", served_name="tiny", dtype="float32", max_model_len=100, activations="float32"
    )
    tokens = list(range(40, 90))
    with torch.inference_mode():
        expected = reference(torch.tensor([tokens])).logits[0, -1]
    found = PagedRun(loaded.model, 4, "float32").step([(0, 0, tokens)])[0]
    assert (found - expected).abs().max() / expected.abs().max() < 1e-4
    assert loaded.card.name == "tiny"
    assert loaded.card.max_model_len == 100


def test_activations_of_each_type_are_an_arithmetic_of_their_own(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", tmp_path, save_llama(tmp_path, **SIZES), Kind.Q4_1)
    choices: list[ActivationsChoice] = ["int8", "bfloat16", "float32"]
    loaded = [
        load_model(tmp_path / "m.gguf", served_name=None, dtype="float32", max_model_len=None, activations=choice)
        for choice in choices
    ]
    assert len({one.numerics_id for one in loaded}) == 3
    logits = [PagedRun(one.model, 4).step([(0, 0, list(range(40, 90)))])[0] for one in loaded]
    errors = [float((found - logits[2]).abs().max() / logits[2].abs().max()) for found in logits]
    assert errors[0] < 0.05
    assert 0 < errors[1] < 0.02


def test_the_reference_operations_have_no_activations_of_their_own(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", tmp_path, save_llama(tmp_path, **SIZES), Kind.Q4_1)
    with pytest.raises(SpliceError, match="activations are bfloat16"):
        load_model(
            tmp_path / "m.gguf",
            served_name=None,
            dtype="float32",
            max_model_len=None,
            ops="reference",
            activations="bfloat16",
        )


@pytest.mark.parametrize("k_kind", [Kind.Q4_1, Kind.Q8_0, Kind.F16], ids=lambda kind: kind.name)
def test_quantised_weights_give_the_bits_of_their_float32_values(tmp_path: Path, k_kind: Kind) -> None:
    reference = save_llama(tmp_path, **SIZES)
    write_gguf(tmp_path / "m.gguf", tmp_path, reference, Kind.Q4_1, k_kind=k_kind)
    reference.save_pretrained(tmp_path)  # with the rounded values
    logits = []
    for path in (tmp_path / "m.gguf", tmp_path):
        loaded = load_model(path, served_name=None, dtype="float32", max_model_len=None, activations="float32")
        run = PagedRun(loaded.model, 8, "float32")
        logits += [run.step([(0, 0, list(range(40, 90))), (1, 0, [3])]), run.step([(0, 50, [7])])]
    assert torch.equal(logits[0], logits[2])
    assert torch.equal(logits[1], logits[3])


@pytest.mark.parametrize("kind", K_QUANTISED, ids=lambda kind: kind.name)
def test_k_quantised_blocks_are_read_whole(tmp_path: Path, kind: Kind) -> None:
    block_elements, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    raw = np.zeros((3, 2 * block_bytes), np.uint8)
    raw[2, -1] = 60
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "llama")
    writer.add_tensor("odd", np.zeros(3, np.float32))
    writer.add_tensor("k", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = GgufFile(tmp_path / "k.gguf").tensor("k", (3, 2 * block_elements))
    np.testing.assert_array_equal(found, gguf.quants.dequantize(raw, kind))


def test_tokenizer_recognises_special_tokens_and_splits_digits(sound: Path) -> None:
    card = load_model(sound, served_name=None, dtype="float32", max_model_len=None).card
    tokenizer = Tokenizer.from_str(card.tokenizer_json)
    assert tokenizer.encode("ab").ids == [258]
    ids = tokenizer.encode("hi <s>ü 42</s>", add_special_tokens=False).ids
    assert ids.count(256) == 1
    assert ids[-1] == 257
    assert tokenizer.decode(ids) == "hi ü 42"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "hi <s>ü 42</s>"
    assert (card.bos_token, card.bos_token_id, card.eos_token_ids, card.add_bos) == ("<s>", 256, (257,), True)


def test_digest_follows_the_weights_and_not_the_name(sound: Path, tmp_path: Path) -> None:
    def digest(path: Path) -> str:
        return load_model(path, served_name=None, dtype="float32", max_model_len=None).card.model_digest

    first = digest(sound)
    moved = sound.rename(tmp_path / "other.gguf")
    assert digest(moved) == first
    raw = bytearray(moved.read_bytes())
    raw[-5] ^= 1
    moved.write_bytes(raw)
    assert digest(moved) != first


def _refused(path: Path) -> str:
    with pytest.raises(SpliceError) as caught:
        load_model(path, served_name=None, dtype="float32", max_model_len=None)
    assert caught.value.code is ErrorCode.BAD_MODEL_FILE
    assert str(path) in caught.value.message
    return caught.value.message


def test_every_truncation_is_a_typed_error(sound: Path, tmp_path: Path) -> None:
    raw = sound.read_bytes()
    for size in [*range(0, 64), *range(64, len(raw) - 200, len(raw) // 60)]:
        path = tmp_path / "short.gguf"
        path.write_bytes(raw[:size])
        _refused(path)


def test_damaged_headers_are_typed_errors_or_load(sound: Path, tmp_path: Path) -> None:
    raw = sound.read_bytes()
    rng = np.random.default_rng(5)
    codes = []
    for _ in range(150):
        damaged = bytearray(raw)
        damaged[int(rng.integers(0, 12000))] ^= 1 << int(rng.integers(0, 8))
        path = tmp_path / "damaged.gguf"
        path.write_bytes(damaged)
        try:
            load_model(path, served_name=None, dtype="float32", max_model_len=64)
        except SpliceError as error:
            codes.append(error.code)
    assert len(codes) > 10
    assert set(codes) <= {ErrorCode.BAD_MODEL_FILE, ErrorCode.BAD_SETTING}


def test_errors_name_field_and_remedy(tmp_path: Path) -> None:
    reference = save_llama(tmp_path, **SIZES)
    path = tmp_path / "m.gguf"
    write_gguf(path, tmp_path, reference, block_count=None)
    assert "'llama.block_count' is missing" in _refused(path)
    write_gguf(path, tmp_path, reference, pre="unheard-of")
    assert "'unheard-of'" in _refused(path)
    write_gguf(path, tmp_path, reference, bad_merges=True)
    assert "merges do not fit" in _refused(path)
    path.write_bytes(b"PK\x03\x04 not a model at all")
    assert "GGUF magic" in _refused(path)
