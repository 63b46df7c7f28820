"""Beam search on the engine against `transformers` on the same weights: the same answers, in the same order."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch
from engine_bench import Bench

from engine.config import EngineConfig
from engine.loader import load_model
from tests.tiny_model import write_tiny_model
from wire.sampling import BeamSearch, EarlyStopping, FinishReason
from wire.text.answer_text import AnswerText
from wire.text.vocabulary import Vocabulary, load_tokenizer

PROMPT = [(11 * i * i + 5 * i + 3) % 250 for i in range(37)]
ENDS = (4, 17, 33, 60, 61, 99, 130, 180, 201, 222)
STOPPING = {EarlyStopping.FALSE: False, EarlyStopping.TRUE: True, EarlyStopping.NEVER: "never"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    path = write_tiny_model(tmp_path_factory.mktemp("model"))
    loaded = load_model(path, served_name=None, dtype="float32", max_model_len=256)
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    theirs.words = PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
    return loaded.model, theirs, Vocabulary(load_tokenizer(loaded.card), loaded.card.tokenizer_json)


def make_bench(model, **sizes):
    config = {"num_blocks": 200, "block_tokens": 8, "max_model_len": 256, "max_num_batched_tokens": 128, **sizes}
    return Bench(EngineConfig(**config), model=model)


def search(bench, *, max_tokens=12, ends=ENDS, prompt=PROMPT, text=None, **beam):
    params = BeamSearch(**{"width": 4, "num_answers": 4, **beam})
    sampling = {"temperature": 0.0, "stop_token_ids": ends, "ignore_eos": True, "max_tokens": max_tokens}
    return bench.submit(prompt, **sampling, beam=params, answer_text=text)


def found(bench, key):
    bench.run()
    return bench.beams[key]


def by_transformers(
    model, *, max_tokens=12, ends=ENDS, width=4, num_answers=4, length_penalty=1.0, early_stopping, stop=()
):
    with torch.inference_mode():
        out = model.generate(
            torch.tensor([PROMPT]),
            attention_mask=torch.ones(1, len(PROMPT), dtype=torch.int64),
            num_beams=width,
            num_return_sequences=num_answers,
            max_new_tokens=max_tokens,
            length_penalty=length_penalty,
            early_stopping=STOPPING[early_stopping],
            eos_token_id=list(ends),
            pad_token_id=ends[0],
            do_sample=False,
            stop_strings=list(stop) or None,
            tokenizer=model.words,
            return_dict_in_generate=True,
            output_scores=True,
        )
    answers = []
    for row, score in zip(out.sequences.tolist(), out.sequences_scores.tolist(), strict=True):
        tokens = row[len(PROMPT) :]
        end = next((i for i in range(len(tokens)) if is_ended(model, tokens[: i + 1], ends, stop)), len(tokens) - 1)
        answers.append((tuple(tokens[: end + 1]), score))
    return answers


def is_ended(model, tokens, ends, stop):
    return tokens[-1] in ends or any(each in model.words.decode(tokens) for each in stop)


@pytest.mark.parametrize("early_stopping", list(EarlyStopping))
@pytest.mark.parametrize(("width", "length_penalty"), list(product((2, 5), (1.0, 0.0, 2.5, -1.0))))
def test_answers_and_scores_are_those_of_transformers(models, width, length_penalty, early_stopping):
    ours, theirs, _ = models
    options = {"width": width, "num_answers": width, "length_penalty": length_penalty, "early_stopping": early_stopping}
    for max_tokens, ends in ((1, ENDS), (14, ENDS), (14, ENDS[:1]), (6, tuple(range(0, 250, 3)))):
        expected = by_transformers(theirs, max_tokens=max_tokens, ends=ends, **options)
        bench = make_bench(ours)
        beams = found(bench, search(bench, max_tokens=max_tokens, ends=ends, **options))
        assert [beam.tokens for beam in beams] == [tokens for tokens, _ in expected]
        assert [beam.score for beam in beams] == pytest.approx([score for _, score in expected], rel=2e-5, abs=1e-5)
        for beam in beams:
            assert beam.finish is (FinishReason.STOP if beam.tokens[-1] in ends else FinishReason.LENGTH)
        assert bench.pool.num_free == bench.pool.num_blocks


@pytest.mark.parametrize("early_stopping", list(EarlyStopping))
@pytest.mark.parametrize("width", [2, 5])
def test_stop_strings_end_the_answers_that_they_end_in_transformers(models, width, early_stopping):
    ours, theirs, vocabulary = models
    options = {"width": width, "num_answers": width, "early_stopping": early_stopping}
    without = by_transformers(theirs, max_tokens=14, ends=ENDS, **options)
    texts = [theirs.words.decode(tokens) for tokens, _ in without]
    # Half a character is none to us and a character to `transformers`: those of one byte are the same to both.
    single = sorted({each for text in texts for each in text[2:] if each.isascii()})
    pairs = sorted({a + b for text in texts for a, b in pairwise(text) if (a + b).isascii()})
    assert single
    assert pairs
    for stop in (tuple(pairs), tuple(single[:2])):
        expected = by_transformers(theirs, max_tokens=14, stop=stop, **options)
        assert expected != without
        bench = make_bench(ours)
        text = AnswerText(vocabulary, stop=stop)
        beams = found(bench, search(bench, max_tokens=14, stop=stop, text=text, **options))
        assert [beam.tokens for beam in beams] == [tokens for tokens, _ in expected]
        assert [beam.score for beam in beams] == pytest.approx([score for _, score in expected], rel=2e-5, abs=1e-5)
        for beam in beams:
            ended = is_ended(theirs, beam.tokens, ENDS, stop)
            assert beam.finish is (FinishReason.STOP if ended else FinishReason.LENGTH)


def test_only_the_best_are_returned(models):
    bench = make_bench(models[0])
    everything, best = search(bench), search(bench, num_answers=2)
    assert found(bench, best) == found(bench, everything)[:2]
