"""What a worker that serves a GGUF file on a CPU loads, and how much memory that takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
_MEASURE = """
import json, sys
from pathlib import Path
import splice.cluster.roles, worker.actor  # what a worker is made of
import engine.models.native_decoder
from engine.steps.batch import SequenceSlice, StepBatch
from engine.blocks.kv_cache import KVCache
from engine.loader import load_model


def memory_bytes():
    lines = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return {name: int(lines[name].split()[0]) << 10 for name in ("Rss", "Pss")}


before = memory_bytes()
loaded = load_model(Path(sys.argv[1]), served_name=None, dtype="auto", max_model_len=None)
after = memory_bytes()
model = loaded.model
model.bind_kv_cache(KVCache.zeros(model.kv_layout(32, "auto"), 2))
logits = model.forward(StepBatch((SequenceSlice([1, 2, 3], 0, (1,), wants_logits=True),)))
growth = {name: after[name] - before[name] for name in before}
print(json.dumps({"torch": "torch" in sys.modules, "growth": growth, "shape": logits.shape}))
"""


@pytest.fixture(scope="module")
def measured(smollm2_gguf: Path) -> dict[str, Any]:
    """Of a process of its own that loads the model as a worker does and computes one step."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(smollm2_gguf)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_a_worker_on_the_native_path_never_loads_torch(measured: dict[str, Any]) -> None:
    assert measured["shape"] == [1, 49152]
    assert not measured["torch"]


@pytest.mark.parametrize("measure", ["Rss", "Pss"])
def test_loading_takes_the_file_and_a_fifth_at_most(measured: dict[str, Any], smollm2_gguf: Path, measure: str) -> None:
    """Weights are packed once and in the precision they came in; the file's own pages go again."""
    assert measured["growth"][measure] <= 1.2 * smollm2_gguf.stat().st_size
