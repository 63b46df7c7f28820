"""`python -m benchmarks.kernels [MODEL.gguf]`: operations at a small model's sizes, and whole steps of a real one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from engine._native import Kernels, PackedLinear
from engine.blocks.kv_cache import KVCache
from engine.loader import load_model
from engine.models.causal_lm import CausalLM
from engine.steps.batch import SequenceSlice, StepBatch

_BLOCK_BYTES = {
    "q4_0": (32, 18),
    "q4_1": (32, 20),
    "q5_1": (32, 24),
    "q8_0": (32, 34),
    "q4_k": (256, 144),
    "q6_k": (256, 210),
    "mxfp4": (32, 17),
}
_SHAPES = [("q4_1", 3072, 576), ("q4_1", 576, 1536), ("q8_0", 49152, 576), ("q4_0", 4096, 4096), ("q4_k", 4096, 4096)]
_SHAPES += [("q6_k", 4096, 4096), ("mxfp4", 2880, 2880)]


def best_s(work: Callable[[], object], runs: int) -> float:
    """CPU seconds of this thread."""
    times = []
    for _ in range(runs):
        start = time.thread_time()
        work()
        times.append(time.thread_time() - start)
    return min(times)


def read_bandwidth(kernels: Kernels) -> None:
    """The ceiling of one row: a sum over 512 MiB, more than any cache."""
    data = np.ones(1 << 26, dtype=np.int64)
    seconds = best_s(lambda: np.bitwise_or.reduce(data), 5)
    rate = data.nbytes / seconds / 1e9
    print(f"reading {data.nbytes >> 20} MiB from memory: {rate:.1f} GB/s on one thread ({kernels.isa})")


def linears(kernels: Kernels) -> None:
    generator = np.random.default_rng(0)
    for kind, n, k in _SHAPES:
        weights, size = _BLOCK_BYTES[kind]
        blocks = generator.integers(0, 60, (n, k // weights * size), dtype=np.uint8)
        if kind == "mxfp4":
            blocks[:, ::size] = 120  # a scale as models have them: products of denormal ones would be slow
        packed = PackedLinear(n, k, kind)
        packed.load_blocks(blocks, kind)
        for m in (1, 2, 4, 8, 16, 64, 256):
            x, out = generator.standard_normal((m, k), dtype=np.float32), np.empty((m, n), np.float32)
            line = f"linear {kind:5} {n:6} x {k:4}, {m:4} rows:"
            for int8 in (True, False):
                work = partial(kernels.linear, out, x, packed, None, int8=int8)
                seconds = best_s(work, 20 if m < 64 else 4)
                name = "int8" if int8 else "float32"
                line += f"  {name} {seconds * 1e6:9.1f} us {packed.nbytes / seconds / 1e9:6.1f} GB/s"
                line += f" {2 * m * n * k / seconds / 1e9:6.1f} GOP/s"
            print(line, flush=True)


def steps(path: Path) -> None:
    """Prompts of so many tokens, and decoding by so many sequences of so long a past."""
    for activations in ("int8", "float32"):
        loaded = load_model(path, served_name=None, dtype="auto", max_model_len=2048, activations=activations)
        layout = loaded.model.kv_layout(32, "auto")
        cache = KVCache.zeros(layout, 600)
        loaded.model.bind_kv_cache(cache)
        blocks = np.random.default_rng(1).permutation(len(cache)).tolist()
        for tokens in (32, 128, 512):
            prompt = SequenceSlice(list(range(tokens)), 0, blocks[:20], True)
            time_step(loaded.model, [prompt], f"{activations:7} prompt of {tokens:4}", 4)
        for sequences, past in ((1, 64), (1, 512), (1, 1024), (4, 64), (16, 64), (16, 512)):
            need = past // 32 + 1
            parts = [SequenceSlice([7], past, blocks[i * need : (i + 1) * need], True) for i in range(sequences)]
            time_step(loaded.model, parts, f"{activations:7} {sequences:3} x 1 after {past:4}", 15)


def time_step(model: CausalLM, slices: list[SequenceSlice], name: str, runs: int) -> None:
    seconds = best_s(lambda: model.forward(StepBatch(tuple(slices))), runs)
    tokens = sum(len(part.token_ids) for part in slices)
    print(f"step {name}: {seconds * 1e3:8.2f} ms {tokens / seconds:7.0f} tokens/s", flush=True)


def main(words: list[str]) -> int:
    if len(words) > 1:
        sys.stderr.write("usage: python -m benchmarks.kernels [MODEL.gguf]\n")
        return 2
    kernels = Kernels("auto", 1)
    read_bandwidth(kernels)
    linears(kernels)
    if words:
        steps(Path(words[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
