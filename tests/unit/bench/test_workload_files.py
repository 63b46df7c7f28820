from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from splice.bench.arrivals import Closed, Poisson, Traced
from splice.bench.overrides import override
from splice.bench.prompts import output_length, prompt_ids, prompt_text, text_maker
from splice.bench.tokenizer_file import open_tokenizer
from splice.bench.workload import (
    RandomPrompt,
    SharedPrefix,
    Slo,
    TracedPrompt,
    Workload,
    load_workload,
    parse_workload,
    workload_names,
)
from tests.tiny_model import write_tiny_model
from wire.errors import SpliceError

GOOD = """
name = "mine"
title = "one"
requests = 2
output_tokens = 3
arrivals = { kind = "poisson", rate = 2.0 }
prompt = { kind = "random", tokens = 4 }
"""
TRACE = """{"timestamp": 100.0, "input_length": 10, "output_length": 2, "hash_ids": [1, 2]}

{"timestamp": 100.5, "input_length": 9, "output_length": 5, "hash_ids": [1, 3]}
"""
TRACED = """
name = "traced"
title = "recorded"
requests = 10
output_tokens = 1
trace_file = "t.jsonl"
arrivals = { kind = "trace" }
prompt = { kind = "trace", block_tokens = 4 }
"""


def test_every_workload_that_comes_with_splice_is_sound_and_named_as_its_file() -> None:
    assert {"A", "B", "C", "D"} <= set(workload_names())
    for name in workload_names():
        assert load_workload(name).name == name


@pytest.mark.parametrize(
    ("name", "prompt", "output", "streams"),
    [("A", 32, 128, 1), ("B", 128, 128, 16), ("C", 1024, 32, 8), ("D", 800, 32, 8)],
)
def test_the_named_workloads_are_what_they_say(name: str, prompt: int, output: int, streams: int) -> None:
    workload = load_workload(name)
    assert [len(prompt_ids(workload, index, (0,))) for index in range(3)] == [prompt] * 3
    assert (workload.output_tokens, workload.streams) == (output, streams)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("requests = 2", "requests = 0"), "requests: expected at least 1"),
        (("output_tokens = 3", "output_tokens = 0"), "output_tokens: expected at least 1"),
        (("tokens = 4", "tokens = 0"), "must be at least 1"),
        (("rate = 2.0", "rate = -2.0"), "arrivals.rate is -2.0"),
        (("poisson", "poison"), "Invalid value 'poison'"),
        (("title", "titel"), "titel"),
        (('"mine"', "mine"), "workload x"),
        (('"random"', '"trace"'), "workload x"),
        (('"random", tokens = 4', '"trace"'), "needs"),
        (('kind = "poisson", rate = 2.0', 'kind = "trace"'), "kind = 'trace' needs a trace_file"),
        (("requests = 2", "requests = 2\ntoken_ids = [9, 9]"), "expected 0 <= low < high"),
        (('"random", tokens = 4', '"multi_turn", tokens = 4, turns = 2'), "multi_turn needs form = 'chat'"),
    ],
)
def test_a_workload_that_cannot_be_is_refused_by_field(change: tuple[str, str], said: str) -> None:
    assert parse_workload(GOOD, "x", Path()).requests == 2
    with pytest.raises(SpliceError) as error:
        parse_workload(GOOD.replace(*change), "x", Path())
    assert said in str(error.value)


def test_what_runs_beside_is_part_of_the_work_and_must_be_a_closed_loop() -> None:
    beside_c, alone = parse_workload(GOOD + 'beside = "C"', "x", Path()), parse_workload(GOOD, "x", Path())
    assert beside_c.beside == load_workload("C")
    assert beside_c.digest != alone.digest
    for wrong in ("poisson", "chat", "running-beside-C"):
        with pytest.raises(SpliceError, match="must be a closed loop"):
            parse_workload(GOOD + f'beside = "{wrong}"', "x", Path())


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(SpliceError, match="known: A, B, C, D"):
        load_workload("E")


def test_the_digest_is_of_the_work_and_not_of_its_title_or_limits() -> None:
    workload = parse_workload(GOOD, "x", Path())
    assert parse_workload(GOOD.replace('"one"', '"two"'), "x", Path()).digest == workload.digest
    assert override(workload, slo=("ttft=5",)).digest == workload.digest
    assert parse_workload(GOOD.replace("tokens = 4", "tokens = 5"), "x", Path()).digest != workload.digest
    assert override(workload, requests=3).digest != workload.digest


def test_overrides_change_what_they_name() -> None:
    workload = parse_workload(GOOD, "x", Path())
    assert override(workload, streams=7).arrivals == Closed(7)
    assert override(workload, rate=9.0).arrivals == Poisson(9.0)
    assert override(workload, token_ids="5:9").token_ids == (5, 9)
    assert override(workload, slo=("ttft=500", "max_gap=20ms")).slo == Slo(ttft_ms=500, max_gap_ms=20)
    for wrong in (
        {"streams": 1, "rate": 1.0},
        {"token_ids": "9:5"},
        {"token_ids": "x"},
        {"slo": ("tft=5",)},
        {"slo": ("ttft=x",)},
    ):
        with pytest.raises(SpliceError):
            override(workload, **wrong)  # type: ignore[arg-type]


def test_a_trace_gives_times_lengths_and_shared_blocks(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(TRACE)
    workload = parse_workload(TRACED, "x", tmp_path)
    assert (workload.requests, workload.arrivals) == (2, Traced())
    first, second = (prompt_ids(workload, index, (0,)) for index in range(2))
    assert (len(first), len(second)) == (10, 9)
    assert first[:4] == second[:4]
    assert first[4:8] != second[4:8]
    assert [output_length(workload, index) for index in range(2)] == [2, 5]
    with pytest.raises(SpliceError, match="trace of traced holds 2"):
        override(workload, requests=3)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"timestamp": 101, "input_length": 0, "output_length": 1}', "line 4: lengths must be at least 1"),
        ('{"timestamp": 1, "input_length": 1, "output_length": 1}', "line 4: timestamp 1"),
        ('{"timestamp": 101, "input_length": 1}', "line 4: Object missing required field `output_length`"),
        (
            '{"timestamp": 101, "input_length": 1, "output_length": 1, "user": "x"}',
            "line 4: Object contains unknown field",
        ),
        ("nonsense", "line 4: "),
    ],
)
def test_a_bad_line_of_a_trace_is_named(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "t.jsonl").write_text(TRACE + line + "\n")
    with pytest.raises(SpliceError) as error:
        parse_workload(TRACED, "x", tmp_path)
    assert said in str(error.value)


def test_an_empty_or_missing_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpliceError, match="cannot read the trace"):
        parse_workload(TRACED, "x", tmp_path)
    (tmp_path / "t.jsonl").write_text("\n")
    with pytest.raises(SpliceError, match="holds no request"):
        parse_workload(TRACED, "x", tmp_path)


def made(prompt: RandomPrompt | SharedPrefix | TracedPrompt) -> Workload:
    return Workload(name="w", title="", requests=9, arrivals=Closed(1), prompt=prompt, output_tokens=1)


@given(st.integers(1, 300), st.integers(0, 50), st.integers(0, 50))
def test_ids_are_exact_in_number_and_depend_on_index_and_seed_alone(tokens: int, index: int, seed: int) -> None:
    workload = made(RandomPrompt(tokens))
    ids = prompt_ids(workload, index, (seed,))
    assert len(ids) == tokens
    assert all(1000 <= each < 30000 for each in ids)
    assert ids == prompt_ids(workload, index, (seed,))


def test_distinct_prompts_share_no_beginning_and_shared_ones_share_all_of_it() -> None:
    distinct = [tuple(prompt_ids(made(RandomPrompt(64)), index, (0,))[:4]) for index in range(200)]
    assert len(set(distinct)) == 200
    shared = [prompt_ids(made(SharedPrefix(16, 4, prefixes=2)), index, (0,)) for index in range(6)]
    assert len({tuple(ids[:16]) for ids in shared}) == 2
    assert len({tuple(ids[16:]) for ids in shared}) == 6
    again = prompt_ids(made(SharedPrefix(16, 4, prefixes=2)), 0, (1,))
    assert again[:16] != shared[0][:16]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return open_tokenizer(write_tiny_model(tmp_path_factory.mktemp("tokenizer") / "tiny"))


@pytest.mark.parametrize("tokens", [1, 2, 3, 17, 200])
def test_texts_tokenise_to_as_many_tokens_as_asked(tokenizer: Tokenizer, tokens: int) -> None:
    text = text_maker(tokenizer)(tokens, (5,))
    assert len(tokenizer.encode(text, add_special_tokens=False).ids) == tokens


def test_a_shared_text_is_shared_and_exact_across_the_seam(tokenizer: Tokenizer) -> None:
    workload = made(SharedPrefix(40, 8))
    texts = [prompt_text(workload, index, (1,), text_maker(tokenizer)) for index in range(3)]
    assert len(set(texts)) == 3
    encoded = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert [len(ids) for ids in encoded] == [48] * 3
    assert len({tuple(ids[:40]) for ids in encoded}) == 1


@pytest.mark.slow
def test_the_tokenizer_of_a_gguf_file_counts_as_the_server_does(smollm2_gguf: Path) -> None:
    tokenizer = open_tokenizer(smollm2_gguf)
    assert tokenizer.get_vocab_size() == 49152
    for tokens in (1, 32, 768):
        text = text_maker(tokenizer)(tokens, (2,))
        assert len(tokenizer.encode(text, add_special_tokens=False).ids) == tokens


def test_a_file_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    for path in (tmp_path, tmp_path / "none.json", tmp_path / "x.gguf"):
        with pytest.raises(SpliceError, match=r"tokenizer|GGUF"):
            open_tokenizer(path)
