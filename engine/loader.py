"""From a path to a model ready to run: a GGUF file or a Hugging Face directory."""

from __future__ import annotations

import hashlib
import importlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec

from engine.formats.bad_file import bad_file
from engine.formats.fields import read_json_object
from engine.formats.fp8_config import Fp8Scheme, fp8_scheme, quantisation_method
from engine.formats.gguf_file import GgufFile
from engine.formats.gguf_tokenizer import tokenizer_from_gguf
from engine.formats.gguf_weights import GgufWeights
from engine.formats.hf_tokenizer import expect_tokenizer, tokenizer_from_directory
from engine.formats.hf_weights import SafetensorsWeights, weight_files
from engine.gpu_place import GpuPlace
from engine.heap import return_freed
from engine.models.causal_lm import CausalLM
from engine.models.kv_layouts import auto_kv_dtype, decoder_kv_layout
from engine.models.needed_tensors import needed_tensors
from engine.models.registry import architecture_of_config, architecture_of_gguf
from engine.numerics import numerics_id, supports_fast_bfloat16
from engine.ops.features import features_of, used_ops
from engine.ops.names import Activations, ActivationsChoice, OpsChoice, QuantizationChoice
from engine.spec import ModelSpec
from engine.tuning.tactic_counts import TacticCounts
from engine.weights import WeightSource
from wire.errors import ErrorCode, SpliceError
from wire.kv_layout import KVDtype, KVLayout
from wire.model_card import ModelCard, TokenizerData

_log = logging.getLogger(__name__)

DtypeChoice = Literal["auto", "float32", "bfloat16"]
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class LoadedModel:
    """A model with everything its worker must tell others about it."""

    model: CausalLM
    card: ModelCard
    numerics_id: str
    tactic_counts: Callable[[], TacticCounts] | None = None
    """What its tactics come to; None where nothing is tuned."""


@dataclass(frozen=True, slots=True)
class _Description:
    """What a file format must say before weights are read."""

    spec: ModelSpec
    read_text: Callable[[], TokenizerData]
    weight_files: Sequence[Path]
    is_quantised: bool
    """Whether there are weights that only the float32 model multiplies packed."""
    open_weights: Callable[[], WeightSource]
    check_weights: Callable[[], object]
    """Raises SpliceError for what the files' headers show."""
    fp8: Fp8Scheme | None = None
    """How matrices in FP8 are scaled, where there are some."""


_Built = tuple[CausalLM, str, Callable[[], TacticCounts] | None]
"""A model, its `numerics_id`, and what its tactics come to."""


@dataclass(frozen=True, slots=True)
class _Build:
    """What a model is built of."""

    spec: ModelSpec
    weights: WeightSource
    length: int
    dtype: Dtype
    kv_dtype: KVDtype
    ops: OpsChoice
    num_threads: int
    activations: Activations


class OpenedModel:
    """A model whose headers are read: what its KV blocks look like is known while its weights are still to be laid
    out, which takes most of the time."""

    def __init__(self, path: Path, name: str, description: _Description, build: _Build, gpu: GpuPlace | None) -> None:
        self._path = path
        self._name = name
        self._description = description
        self._build = build
        self._gpu = gpu

    @property
    def weight_bytes(self) -> int:
        """In memory: about as much as its files, twice that for codes in FP8, which a CPU widens."""
        in_files = sum(file.stat().st_size for file in self._description.weight_files)
        return 2 * in_files if self._description.fp8 is not None and self._gpu is None else in_files

    def kv_layout(self, block_tokens: int, kv_dtype: str) -> KVLayout:
        """As the loaded model's `CausalLM.kv_layout`. Raises SpliceError (bad_setting)."""
        if self._gpu is not None and kv_dtype not in ("auto", "bfloat16"):
            raise SpliceError(
                ErrorCode.BAD_SETTING,
                f"KV cache dtype {kv_dtype!r} is not computed with on a GPU: use auto or bfloat16, or --device cpu",
                param="kv_cache_dtype",
            )
        return decoder_kv_layout(self._build.spec, self._build.kv_dtype, block_tokens, kv_dtype)

    def load(self) -> LoadedModel:
        """Once. Raises SpliceError as `load_model` does."""
        description, build = self._description, self._build
        text = description.read_text()
        return_freed()  # so that weights do not come on top of what the tokenizer needed
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="digest") as digests:
            digest = digests.submit(_digest, build.spec, description)  # as packing, it leaves the GIL
            if self._gpu is not None:
                built = _build_on_gpu(build.spec, build.weights, build.length, self._gpu)
            else:
                built = _build(build)
        _say_unread(self._path, build.spec, build.weights)
        card = ModelCard(
            name=self._name,
            architecture=build.spec.architecture,
            model_digest=digest.result(),
            vocab_size=build.spec.vocab_size,
            max_model_len=build.length,
            **msgspec.structs.asdict(text),
        )
        del self._description, self._build, description, build  # the file's own vocabulary is in the card now
        return_freed()
        model, numerics, tactic_counts = built
        return LoadedModel(model=model, card=card, numerics_id=numerics, tactic_counts=tactic_counts)


def open_model(
    path: Path,
    *,
    served_name: str | None,
    dtype: DtypeChoice,
    max_model_len: int | None,
    ops: OpsChoice = "auto",
    num_threads: int = 1,
    activations: ActivationsChoice = "auto",
    quantization: QuantizationChoice = "auto",
    gpu: GpuPlace | None = None,
) -> OpenedModel:
    """Reads and checks what a model's headers say.

    `served_name` defaults to the file's or directory's name. `dtype` is of what lies between operations, `auto`
    float32; weights are multiplied in the type they are stored in. `max_model_len` defaults to the model's context
    length. `num_threads` share each step; in this process, it holds for all models. `activations` are what weights
    meet, see `engine.ops.names`: `auto` is int8 for quantised files and for others bfloat16 where kernels have tiles
    for it, else float32; another choice is another `numerics_id`. On a `gpu` bfloat16 lies between operations, and
    what is not quantised is bfloat16; matrices in FP8 stay so there, and with `quantization` fp8 others become it. On
    a CPU they are bfloat16. torch is loaded only for what the native kernels do not compute. Raises
    SpliceError: bad_model_file for anything wrong with the files, bad_setting for the arguments.
    """
    description = _describe(path)
    length = _checked_length(max_model_len, description.spec)
    spec = description.spec.served(length)
    kind: Dtype = "float32" if dtype == "auto" else dtype
    rows = _activations(activations, ops, is_quantised=description.is_quantised)
    if quantization == "fp8":
        _expect_quantisable(description, is_on_gpu=gpu is not None)
    if gpu is not None:
        _expect_bfloat16(dtype, activations)
        gpu = _filled_in(gpu, description, activations, rows, quantises=quantization == "fp8")
    weights = description.open_weights()
    kv_dtype = auto_kv_dtype(spec, kind, weights) if gpu is None else "bfloat16"
    build = _Build(spec, weights, length, kind, kv_dtype, ops, num_threads, rows)
    name = served_name or path.resolve().name.removesuffix(".gguf")
    return OpenedModel(path, name, description, build, gpu)


def load_model(
    path: Path,
    *,
    served_name: str | None,
    dtype: DtypeChoice,
    max_model_len: int | None,
    ops: OpsChoice = "auto",
    num_threads: int = 1,
    activations: ActivationsChoice = "auto",
    quantization: QuantizationChoice = "auto",
    gpu: GpuPlace | None = None,
) -> LoadedModel:
    """Reads, checks and lays out a model; arguments as of `open_model`.

    Raises SpliceError: bad_model_file for anything wrong with the files, bad_setting for the arguments, missing_part
    for a GPU that is not there.
    """
    opened = open_model(
        path,
        served_name=served_name,
        dtype=dtype,
        max_model_len=max_model_len,
        ops=ops,
        num_threads=num_threads,
        activations=activations,
        quantization=quantization,
        gpu=gpu,
    )
    return opened.load()


def check_model(path: Path, max_model_len: int | None = None) -> ModelSpec:
    """What can be said of a model from its headers alone, in a fraction of a second.

    Raises SpliceError as `load_model` does: for an unknown architecture, a field that cannot be, a damaged header, a
    file that ends before its tensors do, a tensor that is missing, of another shape or of a type nobody multiplies, a
    context length the model does not have.
    """
    description = _describe(path)
    _checked_length(max_model_len, description.spec)
    description.check_weights()
    weights = description.open_weights()
    for tensor in needed_tensors(description.spec):
        weights.expect(tensor.name, tensor.shape)
    return description.spec


def _build(this: _Build) -> _Built:
    native = _native_decoder() if this.ops == "auto" and this.dtype == "float32" else None
    if native is not None:
        obstacle = native.obstacle(this.spec)
        if obstacle is None:
            kernels = importlib.import_module("engine.ops.native_kernels")
            kernels.set_num_threads(this.num_threads)
            model = native.NativeDecoder(this.spec, this.weights, this.length, this.activations, this.kv_dtype)
            implementations = kernels.implementations(this.activations, used_ops(features_of(this.spec)))
            return model, numerics_id(this.dtype, implementations), None
        _log.info("%s is computed operation by operation, because %s", this.spec.architecture, obstacle)
    return _build_with_torch(this)


def _say_unread(path: Path, spec: ModelSpec, weights: WeightSource) -> None:
    """A tensor without a use may be a part of the model that its configuration forgot."""
    unread = weights.unread()
    if unread:
        _log.warning(
            "%s: %d tensors are no part of %s as configured and are not used, such as %s",
            path,
            len(unread),
            spec.architecture,
            ", ".join(unread[:3]),
        )


def _native_decoder() -> Any:  # Any: a module
    try:
        return importlib.import_module("engine.models.native_decoder")
    except ImportError as error:
        _log.warning("native kernels are not built (%s): using the slower torch operations", error)
        return None


def _build_with_torch(this: _Build) -> _Built:
    import torch  # noqa: PLC0415 (seconds and hundreds of megabytes that most models do not need)

    from engine.layers.torch_weights import TorchWeights  # noqa: PLC0415
    from engine.models.decoder import Decoder  # noqa: PLC0415
    from engine.ops.registry import select_ops, set_num_threads  # noqa: PLC0415

    set_num_threads(this.num_threads)
    dtype = getattr(torch, this.dtype)
    table = select_ops(dtype, this.ops, features_of(this.spec), this.activations)
    model = Decoder(this.spec, table, TorchWeights(this.weights, dtype), this.length, this.kv_dtype)
    return model, numerics_id(this.dtype, table.names), None


def _build_on_gpu(spec: ModelSpec, weights: WeightSource, length: int, gpu: GpuPlace) -> _Built:
    from engine.models.on_gpu import build_on_gpu  # noqa: PLC0415 (torch)

    return build_on_gpu(spec, weights, length, gpu)


def _expect_bfloat16(dtype: DtypeChoice, activations: ActivationsChoice) -> None:
    for param, value in (("dtype", dtype), ("activations", activations)):
        if value == "float32":
            raise SpliceError(
                ErrorCode.BAD_SETTING,
                f"{param} is {value}, but GPUs compute in bfloat16: use auto or bfloat16, or --device cpu",
                param=param,
            )


def _expect_quantisable(description: _Description, *, is_on_gpu: bool) -> None:
    why = None
    if not is_on_gpu:
        why = "a CPU multiplies no FP8: use --device cuda, or leave it away"
    elif description.is_quantised:
        why = "the model's files are quantised in another way: leave it away"
    if why is not None:
        raise SpliceError(ErrorCode.BAD_SETTING, f"quantization is fp8, but {why}", param="quantization")


def _filled_in(
    gpu: GpuPlace, description: _Description, choice: ActivationsChoice, rows: Activations, *, quantises: bool
) -> GpuPlace:
    """With what the files, and settings beside, say of matrices."""
    scheme = description.fp8
    is_quantised = description.is_quantised and rows == "int8"
    if scheme is None and not quantises:
        return replace(gpu, is_quantised=is_quantised)
    if choice == "int8":
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            "activations are int8, but matrices in FP8 meet FP8 or bfloat16 on a GPU: use auto or bfloat16",
            param="activations",
        )
    wants_bfloat16 = choice == "bfloat16" or (scheme is not None and scheme.activations == "bfloat16")
    meets: Literal["codes", "bfloat16"] = "bfloat16" if wants_bfloat16 else "codes"
    return replace(gpu, fp8_rows=meets, quantises=quantises and scheme is None)


def _activations(choice: ActivationsChoice, ops: OpsChoice, *, is_quantised: bool) -> Activations:
    if ops == "reference" and choice in ("int8", "bfloat16"):
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            f"activations are {choice}, but the reference operations multiply in the dtype of the model: use auto or "
            "float32",
            param="activations",
        )
    if choice != "auto":
        return choice
    if ops == "reference":
        return "float32"
    return "bfloat16" if supports_fast_bfloat16() and not is_quantised else "int8"


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
    scheme = None if quantisation_method(config) == "mxfp4" else fp8_scheme(config)

    def weights() -> SafetensorsWeights:
        return SafetensorsWeights(path, partial(architecture.hf_tensor, spec), scheme)

    return _Description(
        spec=spec,
        read_text=lambda: tokenizer_from_directory(path, config, spec.vocab_size),
        weight_files=weight_files(path),
        is_quantised=quantisation_method(config) == "mxfp4",
        open_weights=weights,
        check_weights=lambda: (expect_tokenizer(path), weights()),
        fp8=scheme,
    )


def _describe_gguf(path: Path) -> _Description:
    file = GgufFile(path)
    architecture = architecture_of_gguf(file)
    spec = architecture.read_gguf(file)
    return _Description(
        spec=spec,
        read_text=lambda: tokenizer_from_gguf(file.fields, spec.vocab_size),
        weight_files=(path,),
        is_quantised=True,
        open_weights=lambda: GgufWeights(file, partial(architecture.gguf_tensor, spec)),
        check_weights=file.check_tensors,
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


def _digest(spec: ModelSpec, description: _Description) -> str:
    """32 hexadecimal digits over the architecture, how FP8 codes are meant, and the bytes of the weight files; file
    names do not count."""
    said = repr(spec) if description.fp8 is None else f"{spec!r} {description.fp8!r}"
    digest = hashlib.blake2b(said.encode(), digest_size=16)
    for path in description.weight_files:
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).digest())
    return digest.hexdigest()
