"""`python -m benchmarks.kernels.quality MODEL.gguf TEXT...`: what int8 activations change in a model's predictions.

The files' text is cut into sequences; every next-token distribution of the int8 run is held against that of the float32
run of the same weights: Kullback-Leibler divergence, and perplexity of the text under both.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from engine.batch import SequenceSlice, StepBatch
from engine.kv_cache import KVCache
from engine.loader import LoadedModel, load_model
from engine.ops.names import Activations

LENGTH, SEQUENCES = 256, 16
Floats = npt.NDArray[np.float64]


def bound(path: Path, activations: Activations) -> LoadedModel:
    loaded = load_model(path, served_name=None, dtype="auto", max_model_len=LENGTH, activations=activations)
    loaded.model.bind_kv_cache(KVCache.zeros(loaded.model.kv_layout(32, "auto"), LENGTH // 32))
    return loaded


def log_probabilities(loaded: LoadedModel, tokens: list[int]) -> Floats:
    """`[len(tokens), vocab]` of what follows each token."""
    part = SequenceSlice(tokens, 0, range(LENGTH // 32), wants_logits=True, wants_all_logits=True)
    logits = np.asarray(loaded.model.forward(StepBatch((part,)))).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    found: Floats = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return found


def main(words: list[str]) -> int:
    if len(words) < 2:
        sys.stderr.write("usage: python -m benchmarks.kernels.quality MODEL.gguf TEXT...\n")
        return 2
    exact, rounded = (bound(Path(words[0]), activations) for activations in ("float32", "int8"))
    text = "\n".join(Path(word).read_text(encoding="utf-8") for word in words[1:])
    ids = Tokenizer.from_str(exact.card.tokenizer_json).encode(text, add_special_tokens=False).ids
    rows = min(SEQUENCES, len(ids) // LENGTH)
    if not rows:
        sys.stderr.write(f"the text has {len(ids)} tokens, {LENGTH} are needed\n")
        return 2
    divergences: list[Floats] = []
    losses, agreed = np.zeros(2), 0
    for row in range(rows):
        tokens = ids[row * LENGTH : (row + 1) * LENGTH]
        p, q = (log_probabilities(model, tokens)[:-1] for model in (exact, rounded))
        divergences.append((np.exp(p) * (p - q)).sum(axis=1))
        following = np.array(tokens[1:])[:, None]
        losses -= [np.take_along_axis(one, following, axis=1).sum() for one in (p, q)]
        agreed += int((p.argmax(axis=1) == q.argmax(axis=1)).sum())
    count = rows * (LENGTH - 1)
    perplexity = np.exp(losses / count)
    print(f"{count} predictions: mean KL {np.mean(divergences):.5f}, largest {np.max(divergences):.3f}")
    print(
        f"perplexity float32 {perplexity[0]:.4f}, int8 {perplexity[1]:.4f} ({perplexity[1] / perplexity[0] - 1:+.3%})"
    )
    print(f"same first choice: {agreed / count:.2%}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
