"""Experts in MXFP4 take the memory that they take in their file, whichever format it has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from moe_gguf_files import begin_moe_gguf, finish_gguf
from moe_models import MODELS
from safetensors.numpy import save_file
from tiny_models import byte_tokenizer

from engine.formats import mxfp4
from engine.formats.fields import read_json_object
from engine.formats.stored import Stored
from engine.models.gpt_oss import GPT_OSS
from engine.models.needed_tensors import needed_tensors
from engine.spec import ModelSpec

ROOT = Path(__file__).resolve().parents[3]
SIZES = {
    "hidden_size": 512, "intermediate_size": 512, "num_local_experts": 32, "num_hidden_layers": 5, "head_dim": 16,
}  # fmt: skip
"""126 million weights in experts: 67 MB in blocks, 503 in float32."""
_MEASURE = """
import json, sys
from pathlib import Path
import numpy
import engine.models.native_decoder
from engine.steps.batch import SequenceSlice, StepBatch
from engine.blocks.kv_cache import KVCache
from engine.loader import load_model


def memory_bytes():
    lines = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return {name: int(lines[name].split()[0]) << 10 for name in ("Rss", "Pss")}


before = memory_bytes()
model = load_model(Path(sys.argv[1]), served_name=None, dtype="auto", max_model_len=None).model
after = memory_bytes()
model.bind_kv_cache(KVCache.zeros(model.kv_layout(32, "auto"), 2))
logits = model.forward(StepBatch((SequenceSlice([1, 2, 3], 0, (1,), wants_logits=True),)))
finite = bool(numpy.isfinite(logits).all())
print(json.dumps({"growth": {name: after[name] - before[name] for name in before}, "finite": finite}))
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory, and beside its files `m.gguf` with a model of the same sizes: of numbers drawn."""
    path = tmp_path_factory.mktemp("gpt-oss")
    _, config_class, fields = MODELS["gpt-oss"]
    config = config_class(**{**fields, **SIZES})
    of_config = {**config.to_dict(), "quantization_config": {"quant_method": "mxfp4"}}
    (path / "config.json").write_text(json.dumps(of_config))
    byte_tokenizer().save(str(path / "tokenizer.json"))
    spec = GPT_OSS.read_config(read_json_object(path / "config.json"))
    rng = np.random.default_rng(0)

    tensors: dict[str, npt.NDArray[Any]] = {}
    writer = begin_moe_gguf(path / "m.gguf", "gpt-oss", config)
    for name, shape in _stored(spec, GPT_OSS.hf_tensor).items():
        if len(shape) == 3:
            tensors[name + mxfp4.BLOCKS], tensors[name + mxfp4.SCALES] = _blocks(rng, shape)
        else:
            tensors[name] = rng.standard_normal(shape, dtype=np.float32)
    save_file(tensors, path / "model.safetensors")
    for name, shape in _stored(spec, GPT_OSS.gguf_tensor).items():
        if len(shape) == 3:
            blocks, scales = _blocks(rng, (shape[0] * shape[1], shape[2]))
            rows = mxfp4.as_gguf(blocks, scales).reshape(*shape[:2], -1)
            writer.add_tensor(name, rows, raw_dtype=gguf.GGMLQuantizationType.MXFP4)
        else:
            writer.add_tensor(name, rng.standard_normal(shape, dtype=np.float32))
    finish_gguf(writer)
    return path


def _stored(spec: ModelSpec, locate: Callable[[ModelSpec, str], Stored]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a file's tensors, outputs as rows."""
    found = {}
    for needed in needed_tensors(spec):
        stored = replace(locate(spec, needed.name), is_transposed=False)
        found[stored.name] = stored.shape(needed.shape)
    return found


def _blocks(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    *rows, columns = shape
    groups = columns // mxfp4.GROUP
    codes = rng.integers(0, 256, (*rows, groups, mxfp4.GROUP // 2), dtype=np.uint8)
    return codes, rng.integers(118, 124, (*rows, groups), dtype=np.uint8)


@pytest.mark.parametrize("of", ["directory", "gguf"])
def test_loading_packed_experts_takes_their_file_and_a_fifth_at_most(directory: Path, of: str) -> None:
    """4.5 bits a weight where the file has 4.25; nothing is left of what was turned from one format into the other."""
    model, file = (directory, "model.safetensors") if of == "directory" else (directory / "m.gguf", "m.gguf")
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(model)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["finite"]
    for measure, growth in found["growth"].items():
        assert growth <= 1.2 * (directory / file).stat().st_size, measure
