"""`python -m benchmarks.kernels.quality MODEL [TEXT...] [--llama-server BINARY] [--json FILE]`: what rounding changes.

A text is cut into sequences, each begun as the model's sequences begin; every next-token distribution of a run in
narrower numbers is held against that of the run of the same weights in float32: Kullback-Leibler divergence, perplexity
of the text under both, and how often the first choice is the same. `--llama-server` puts llama.cpp's predictions from
the same GGUF file beside ours, for some of the positions: it tells one whole distribution a second or less.

The text is quality_text.txt beside this file unless others are named: pages of this project's own documentation,
without tables and code, as they once were. It does not follow them, so that figures can be compared.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from benchmarks.kernels.divergence import Figures, Floats, Tally, log_softmax
from benchmarks.kernels.llama_server import LlamaServer
from engine.blocks.kv_cache import KVCache
from engine.loader import LoadedModel, load_model
from engine.ops.names import Activations
from engine.steps.batch import SequenceSlice, StepBatch
from splice.bench.fingerprint import file_digest, read_environment
from wire.model_card import ModelCard

LENGTH = 256
TEXT = Path(__file__).with_name("quality_text.txt")
_ROWS_AT_ONCE = 32
"""Of a run that are in float64 at a time: vocabularies are large."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """What a run computes with."""

    activations: Activations
    kv_cache: str = "float32"

    def __str__(self) -> str:
        return f"activations {self.activations}, KV {self.kv_cache}"


EXACT = Numbers("float32")
INT8 = Numbers("int8")
RUNS = (
    INT8,
    Numbers("bfloat16"),
    Numbers("float32", "bfloat16"),
    Numbers("float32", "int8"),
    Numbers("float32", "fp8_e4m3"),
    Numbers("int8", "int8"),
    Numbers("int8", "fp8_e4m3"),
)


class Models:
    """One model with every kind of activations that the runs ask for."""

    def __init__(self, path: Path, runs: Sequence[Numbers]) -> None:
        self._loaded = {
            kind: load_model(path, served_name=None, dtype="float32", max_model_len=LENGTH, activations=kind)
            for kind in dict.fromkeys(run.activations for run in (EXACT, *runs))
        }

    @property
    def card(self) -> ModelCard:
        return self._loaded[EXACT.activations].card

    def logits(self, numbers: Numbers, tokens: list[int]) -> npt.NDArray[np.float32]:
        """`[len(tokens), vocab]` of what follows each token."""
        loaded: LoadedModel = self._loaded[numbers.activations]
        loaded.model.bind_kv_cache(KVCache.zeros(loaded.model.kv_layout(32, numbers.kv_cache), LENGTH // 32))
        part = SequenceSlice(tokens, 0, range(LENGTH // 32), wants_logits=True, wants_all_logits=True)
        return np.asarray(loaded.model.forward(StepBatch((part,))))


def sequences_of(card: ModelCard, text: str, most: int) -> list[list[int]]:
    """Of LENGTH tokens each; what is left over at the end is not used."""
    ids = Tokenizer.from_str(card.tokenizer_json).encode(text, add_special_tokens=False).ids
    begin = [card.bos_token_id] if card.add_bos and card.bos_token_id is not None else []
    step = LENGTH - len(begin)
    return [begin + ids[row * step : (row + 1) * step] for row in range(min(most, len(ids) // step))]


def measure(models: Models, sequences: Sequence[list[int]], runs: Sequence[Numbers]) -> dict[Numbers, Tally]:
    """Every run over all predictions of the sequences."""
    tallies = {numbers: Tally() for numbers in runs}
    for number, tokens in enumerate(sequences):
        following = np.array(tokens[1:])
        exact = models.logits(EXACT, tokens)[:-1]
        found = {numbers: models.logits(numbers, tokens)[:-1] for numbers in runs}
        for first in range(0, len(following), _ROWS_AT_ONCE):
            rows = slice(first, first + _ROWS_AT_ONCE)
            of_exact = log_softmax(exact[rows])
            for numbers, tally in tallies.items():
                tally.add(of_exact, log_softmax(found[numbers][rows]), following[rows])
        _show(f"{number + 1} of {len(sequences)} sequences", is_last=number + 1 == len(sequences))
    return tallies


@dataclass(frozen=True, slots=True)
class Beside:
    """Ours and a peer's, at the same positions."""

    peer: str
    predictions: int
    ours: Figures
    peers: Figures


def measure_beside(models: Models, sequences: Sequence[list[int]], server: LlamaServer, predictions: int) -> Beside:
    """Of int8 activations and the server's, at so many positions spread over the sequences."""
    ours, peers, done = Tally(), Tally(), 0
    wanted = _spread(predictions, len(sequences) * (LENGTH - 1))
    for number, tokens in enumerate(sequences):
        positions = [place % (LENGTH - 1) for place in wanted if place // (LENGTH - 1) == number]
        if not positions:
            continue
        exact, int8 = (log_softmax(models.logits(numbers, tokens)[positions]) for numbers in (EXACT, INT8))
        following = np.array(tokens)[np.array(positions) + 1]
        ours.add(exact, int8, following)
        for row, found in enumerate(_told(server, tokens, positions, exact.shape[1])):
            peers.add(exact[row : row + 1], found[None], following[row : row + 1])
            done += 1
            _show(f"{done} of {len(wanted)} predictions of the peer", is_last=done == len(wanted))
    return Beside(f"llama-server {server.build()}", len(wanted), ours.figures(), peers.figures())


def _told(server: LlamaServer, tokens: list[int], positions: list[int], vocab_size: int) -> Iterator[Floats]:
    for position in positions:
        yield server.log_probabilities(tokens[: position + 1], vocab_size)


def _spread(count: int, of: int) -> list[int]:
    count = min(count, of)
    return [(2 * index + 1) * of // (2 * count) for index in range(count)]


def _show(progress: str, *, is_last: bool) -> None:
    sys.stderr.write(f"\r{progress}" + ("\n" if is_last else ""))
    sys.stderr.flush()


def _line(name: str, figures: Figures) -> str:
    return (
        f"{name:36} mean KL {figures.mean_kl:.5f}  p99 {figures.p99_kl:.4f}  largest {figures.largest_kl:.3f}"
        f"  perplexity {figures.perplexity:9.4f} ({figures.perplexity_change:+.3%})"
        f"  same choice {figures.same_first_choice:.2%}"
    )


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels.quality")
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path, nargs="*", default=[TEXT])
    parser.add_argument("--sequences", type=int, default=16, help=f"of {LENGTH} tokens, at most")
    parser.add_argument("--llama-server", type=Path, help="the binary of a peer that reads the same file")
    parser.add_argument("--peer-predictions", type=int, default=256)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(words)
    text = "\n".join(path.read_text(encoding="utf-8") for path in chosen.text)
    models = Models(chosen.model, RUNS)
    sequences = sequences_of(models.card, text, chosen.sequences)
    if not sequences:
        sys.stderr.write(f"the text is shorter than one sequence of {LENGTH} tokens: give a longer one\n")
        return 2
    tallies = measure(models, sequences, RUNS)
    print(f"{chosen.model.name}: {tallies[INT8].count} predictions")
    for numbers, tally in tallies.items():
        figures = tally.figures()
        verdict = "within" if figures.are_within_bounds else "OUTSIDE"
        print(f"{_line(str(numbers), figures)}  {verdict} the bounds")
    beside = None
    if chosen.llama_server:
        with LlamaServer(chosen.llama_server, chosen.model, 2 * LENGTH, threads=2) as server:
            beside = measure_beside(models, sequences, server, chosen.peer_predictions)
        print(f"at {beside.predictions} of these positions, beside {beside.peer}:")
        print(_line(str(INT8), beside.ours))
        print(_line("the peer", beside.peers))
    if chosen.json:
        record = {
            "environment": read_environment(),
            "model": {"name": chosen.model.name, "digest": file_digest(chosen.model)},
            "text": hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),
            "length": LENGTH,
            "predictions": tallies[INT8].count,
            "runs": [{**asdict(numbers), **asdict(tally.figures())} for numbers, tally in tallies.items()],
            "beside": beside,
        }
        chosen.json.write_bytes(msgspec.json.format(msgspec.json.encode(record)) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
