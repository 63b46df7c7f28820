"""A stop string ends a beam at the token that completes it, once, however tokens split the text and steps the work."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from engine.sampling.beam_search import Beams
from engine.scheduling.request import RequestKind
from wire.errors import ErrorCode, SpliceError
from wire.sampling import BeamSearch, EarlyStopping, FinishReason, TokenLogprobs
from wire.text.answer_text import AnswerText
from wire.text.vocabulary import Vocabulary

PROMPT = [(7 * i * i + 3 * i + 1) % 60 for i in range(21)]
LETTERS = "abc"
PIECES = [
    *LETTERS,
    *(a + b for a in LETTERS for b in LETTERS),
    *(a + b + c for a in LETTERS for b in "ab" for c in "bc"),
]
PIECES += ["Ã", "©", "Ã©", "aÃ", "©b"]  # the two bytes of é, apart and together, as byte-level tokenizers write them
PIECES += [f"x{number}" for number in range(61 - len(PIECES))]


def byte_level() -> Vocabulary:
    tokenizer = Tokenizer(models.BPE(vocab={piece: index for index, piece in enumerate(PIECES)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return Vocabulary(tokenizer, tokenizer.to_str())


def byte_fallback() -> Vocabulary:
    pieces = ["<0xC3>" if piece == "Ã" else "<0xA9>" if piece == "©" else piece for piece in PIECES]
    tokenizer = Tokenizer(models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[]))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return Vocabulary(tokenizer, tokenizer.to_str())


VOCABULARY, FALLBACK = byte_level(), byte_fallback()


def text_of(tokens: tuple[int, ...], vocabulary: Vocabulary = VOCABULARY) -> str:
    return vocabulary.decode(tokens)


def is_stopped(tokens: tuple[int, ...], stops: tuple[str, ...], min_tokens: int = 0) -> bool:
    """Read naively, as bytes. A character begun within `min_tokens` and completed after them counts."""
    spelled = [VOCABULARY.token_bytes(token) for token in tokens]
    half = b"".join(spelled[:min_tokens]).endswith("é".encode()[:1])
    answer = "é".encode()[: int(half)] + b"".join(spelled[min_tokens:])
    return any(stop.encode() in answer for stop in stops)


class RandomModel:
    """Log probabilities that depend on the whole prefix and nothing else."""

    def __init__(self, seed: int, vocab_size: int) -> None:
        self._seed = seed
        self._vocab_size = vocab_size

    def options(self, prefix: tuple[int, ...]) -> TokenLogprobs:
        drawn = random.Random(f"{self._seed} {prefix}")
        figures = [-drawn.expovariate(0.7) for _ in range(self._vocab_size)]
        order = sorted(range(self._vocab_size), key=lambda token: -figures[token])
        return TokenLogprobs(0.0, tuple(order), tuple(figures[token] for token in order))


def naive_search(model, stops, *, width, max_tokens, min_tokens):
    """Beam search by its definition, `early_stopping` true, on whole sequences: (tokens, mean log probability)."""
    running, complete = [((), 0.0)], []
    for length in range(1, max_tokens + 1):
        grown = []
        for place, (prefix, total) in enumerate(running):
            row = model.options(prefix)
            pairs = zip(row.top_ids, row.top_logprobs, strict=True)
            grown += [(-(total + logprob), place, token, (*prefix, token)) for token, logprob in pairs]
        best = [(tokens, -negative) for negative, _, _, tokens in sorted(grown)[: 2 * width]]
        ended = [length == max_tokens or is_stopped(tokens, stops, min_tokens) for tokens, _ in best]
        complete += [(tokens, total / length) for (tokens, total), end in zip(best[:width], ended, strict=False) if end]
        complete = sorted(complete, key=lambda each: -each[1])[:width]
        running = [each for each, end in zip(best, ended, strict=True) if not end][:width]
        if len(complete) == width or not running:
            break
    return complete


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    stops=st.lists(st.text(alphabet="abcé", min_size=1, max_size=4), min_size=1, max_size=3).map(tuple),
    width=st.integers(1, 4),
    min_tokens=st.integers(0, 3),
)
@example(seed=11797, stops=("é",), width=2, min_tokens=2).via("é begins in the second token and ends in the third")
def test_beams_end_where_a_reader_of_their_whole_text_sees_a_stop_string(seed, stops, width, min_tokens) -> None:
    model = RandomModel(seed, 32)
    params = BeamSearch(width=width, num_answers=width, early_stopping=EarlyStopping.TRUE, stop=stops)
    text = AnswerText(VOCABULARY, stop=stops, min_tokens=min_tokens)
    beams = Beams(params, max_tokens=7, min_tokens=min_tokens, ends=(), num_top=None, text=text)
    while beams.running:
        beams.extend([model.options(prefix.tokens) for prefix in beams.running])
    expected = naive_search(model, stops, width=width, max_tokens=7, min_tokens=min_tokens)
    assert [(beam.tokens, beam.score) for beam in beams.answers] == expected
    for beam in beams.answers:
        assert (beam.finish is FinishReason.STOP) == is_stopped(beam.tokens, stops, min_tokens)
        assert not is_stopped(beam.tokens[:-1], stops, min_tokens), "it went on behind its end"


STOPS = ("ab", "caa", "é", "bc")


def search(bench, vocabulary=VOCABULARY, *, stops=STOPS, kind=RequestKind.GENERATE, **options):
    beam = BeamSearch(width=4, num_answers=4, stop=stops)
    sampling = {"ignore_eos": True, "max_tokens": 16, **options}
    return bench.submit(PROMPT, kind=kind, beam=beam, answer_text=AnswerText(vocabulary, stop=stops), **sampling)


@pytest.mark.parametrize("vocabulary", [VOCABULARY, FALLBACK], ids=["byte level", "byte fallback"])
def test_neighbours_chunks_caches_and_preemption_change_nothing(make_bench, vocabulary) -> None:
    bench = make_bench()
    key = search(bench, vocabulary)
    bench.run()
    expected = bench.beams[key]
    stopped = [beam for beam in expected if beam.finish is FinishReason.STOP]
    assert stopped
    for beam in stopped:
        assert any(stop in text_of(beam.tokens, vocabulary) for stop in STOPS)
        assert not any(stop in text_of(beam.tokens[:-1], vocabulary) for stop in STOPS)
    assert len({beam.tokens for beam in expected}) == len(expected)
    for sizes in ({"max_num_batched_tokens": 19}, {"enable_prefix_caching": False}, {"num_blocks": 52}):
        bench = make_bench(**sizes)
        others = [bench.submit([i, *PROMPT[i:]], max_tokens=25, seed=i, temperature=1.0) for i in range(3)]
        keys = [search(bench, vocabulary) for _ in range(2)]
        bench.run()
        assert [bench.beams[key] for key in keys] == [expected, expected]
        assert all(bench.answer(other) for other in others)
        assert bench.pool.num_free == bench.pool.num_blocks


def test_without_their_stop_strings_the_same_beams_go_on(make_bench) -> None:
    bench = make_bench()
    stopped, going_on = search(bench), search(bench, stops=())
    bench.run()
    assert min(len(beam.tokens) for beam in bench.beams[stopped]) < 16
    assert {len(beam.tokens) for beam in bench.beams[going_on]} == {16}


def test_a_search_whose_every_candidate_ends_is_over(make_bench) -> None:
    bench = make_bench()
    key = search(bench, stops=("a", "b", "c", "x", "\ufffd", "é"))
    bench.run()
    assert [len(beam.tokens) for beam in bench.beams[key]] == [1, 1, 1, 1]
    assert {beam.finish for beam in bench.beams[key]} == {FinishReason.STOP}
    assert bench.pool.num_free == bench.pool.num_blocks


def test_stop_strings_without_a_text_to_find_them_in_are_refused(make_bench) -> None:
    beam = BeamSearch(width=2, num_answers=2, stop=("ab",))
    with pytest.raises(SpliceError, match="answer_text") as refused:
        make_bench().submit(PROMPT, beam=beam)
    assert refused.value.code is ErrorCode.INVALID_REQUEST


def test_a_text_that_cannot_be_spelled_ends_its_search_alone(make_bench) -> None:
    class Damaged(AnswerText):
        def after(self, token: int) -> AnswerText:
            raise ValueError("the tokenizer's decoder rewrites text that it gave out before")

    bench = make_bench()
    beam = BeamSearch(width=4, num_answers=4, stop=STOPS)
    bad = bench.submit(PROMPT, beam=beam, ignore_eos=True, answer_text=Damaged(VOCABULARY, stop=STOPS))
    good, other = search(bench), bench.submit(PROMPT, max_tokens=9, ignore_eos=True)
    bench.run()
    assert list(bench.failed) == [bad]
    assert bench.beams[good]
    assert len(bench.answer(other)) == 9
    assert bench.pool.num_free == bench.pool.num_blocks
