"""From a path to a model ready to run: a GGUF file or a Hugging Face directory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from engine.formats.bad_file import bad_file
from engine.formats.fields import read_json_object
from engine.formats.gguf_file import GgufFile
from engine.formats.gguf_tokenizer import tokenizer_from_gguf
from engine.formats.gguf_weights import GgufWeights
from engine.formats.hf_tokenizer import tokenizer_from_directory
from engine.formats.hf_weights import SafetensorsWeights, weight_files
from engine.formats.tokenizer_data import TokenizerData
from engine.layers.weights import Weights
from engine.models.causal_lm import CausalLM
from engine.models.decoder import Decoder
from engine.models.registry import architecture_of_config, architecture_of_gguf
from engine.numerics import numerics_id, supports_fast_bfloat16
from engine.ops.features import features_of
from engine.ops.registry import OpsChoice, select_ops
from engine.spec import ModelSpec
from wire.errors import ErrorCode, SpliceError
from wire.model_card import ModelCard

DtypeChoice = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class LoadedModel:
    """A model with everything its worker must tell others about it."""

    model: CausalLM
    card: ModelCard
    numerics_id: str
    dtype: str
    """`float32` or `bfloat16`: of weights and activations."""


@dataclass(frozen=True, slots=True)
class _Description:
    """What a file format must say before weights are read."""

    spec: ModelSpec
    text: TokenizerData
    weight_files: Sequence[Path]
    open_weights: Callable[[torch.dtype], Weights]


def load_model(
    path: Path,
    *,
    served_name: str | None,
    dtype: DtypeChoice,
    max_model_len: int | None,
    ops: OpsChoice = "auto",
) -> LoadedModel:
    """Reads, checks and lays out a model.

    `served_name` defaults to the file's or directory's name. `dtype` `auto` is float32 for GGUF files, whose quantised
    weights are multiplied packed, and for others bfloat16 where the CPU multiplies it. `max_model_len` defaults to the
    model's context length. Raises SpliceError: bad_model_file for anything wrong with the files, bad_setting for the
    arguments.
    """
    description = _describe(path)
    text = description.text
    length = _checked_length(max_model_len, description.spec)
    spec = description.spec.served(length)
    torch_dtype = _torch_dtype(dtype, is_gguf=path.is_file())
    table = select_ops(torch_dtype, ops, features_of(spec))
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="digest") as digests:
        digest = digests.submit(_digest, spec, description.weight_files)  # hashing and packing both leave the GIL
        model = Decoder(spec, table, description.open_weights(torch_dtype), length)
    card = ModelCard(
        name=served_name or path.resolve().name.removesuffix(".gguf"),
        architecture=spec.architecture,
        model_digest=digest.result(),
        vocab_size=spec.vocab_size,
        max_model_len=length,
        tokenizer_json=text.tokenizer_json,
        chat_template=text.chat_template,
        bos_token=text.bos_token,
        eos_token=text.eos_token,
        bos_token_id=text.bos_token_id,
        eos_token_ids=text.eos_token_ids,
        add_bos=text.add_bos,
    )
    return LoadedModel(
        model=model,
        card=card,
        numerics_id=numerics_id(torch_dtype, table),
        dtype=str(torch_dtype).removeprefix("torch."),
    )


def _describe(path: Path) -> _Description:
    if path.is_dir():
        return _describe_directory(path)
    if not path.is_file():
        raise bad_file(path, "no such file or directory", "give the path of a GGUF file or a Hugging Face directory")
    return _describe_gguf(path)


def _describe_directory(path: Path) -> _Description:
    if not (path / "config.json").is_file():
        raise bad_file(path, "no config.json in it", "give a Hugging Face model directory or a GGUF file")
    config = read_json_object(path / "config.json")
    architecture = architecture_of_config(config)
    spec = architecture.read_config(config)
    return _Description(
        spec=spec,
        text=tokenizer_from_directory(path, config, spec.vocab_size),
        weight_files=weight_files(path),
        open_weights=lambda dtype: SafetensorsWeights(path, dtype, partial(architecture.hf_tensor, spec)),
    )


def _describe_gguf(path: Path) -> _Description:
    file = GgufFile(path)
    architecture = architecture_of_gguf(file)
    spec = architecture.read_gguf(file)
    return _Description(
        spec=spec,
        text=tokenizer_from_gguf(file.fields, spec.vocab_size),
        weight_files=(path,),
        open_weights=lambda dtype: GgufWeights(file, dtype, partial(architecture.gguf_tensor, spec)),
    )


def _checked_length(max_model_len: int | None, spec: ModelSpec) -> int:
    if max_model_len is None:
        return spec.max_positions
    if not 1 <= max_model_len <= spec.reach:
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            f"max_model_len is {max_model_len}, expected 1 to {spec.reach}, the model's context length",
            param="max_model_len",
        )
    return max_model_len


def _torch_dtype(dtype: DtypeChoice, *, is_gguf: bool) -> torch.dtype:
    if dtype == "auto":
        return torch.bfloat16 if supports_fast_bfloat16() and not is_gguf else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]


def _digest(spec: ModelSpec, files: Sequence[Path]) -> str:
    """32 hexadecimal digits over the architecture and the bytes of the weight files; file names do not count."""
    digest = hashlib.blake2b(repr(spec).encode(), digest_size=16)
    for path in files:
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).digest())
    return digest.hexdigest()
