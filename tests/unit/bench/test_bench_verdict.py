from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from splice.bench.result import Result, Series, write_result
from splice.bench.verdict import Judgement, Verdict, decide, judge
from splice.cli.main import app
from tests.unit.bench.bench_results import WORKLOAD, environment, result, series

SAME = (environment(), environment())
STEADY, SLOWER, WILD = (5000, 5010, 4990), (6000, 6010, 5990), (3000, 5000, 9000)


def judged(a: Series, b: Series, **options: object) -> Verdict:
    return judge([a], [b], SAME, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("low", "high", "higher_is_better", "expected"),
    [
        (1.1, 1.2, True, Judgement.BETTER),
        (1.1, 1.2, False, Judgement.WORSE),
        (0.8, 0.9, True, Judgement.WORSE),
        (0.8, 0.9, False, Judgement.BETTER),
        (0.98, 1.02, True, Judgement.SAME),
        (1.01, 1.02, True, Judgement.SAME),
        (0.9, 1.1, True, Judgement.UNCLEAR),
        (0.99, 1.2, False, Judgement.UNCLEAR),
    ],
)
def test_an_interval_becomes_a_word(low: float, high: float, higher_is_better: bool, expected: Judgement) -> None:
    assert decide(low, high, higher_is_better=higher_is_better, tolerance=0.03) is expected


def test_slower_tokens_are_worse_and_faster_ones_better() -> None:
    found = {each.metric: each for each in judged(series(STEADY), series(SLOWER)).comparisons}
    assert found["ITL p95"].judgement is Judgement.WORSE
    assert found["ITL p95"].ratio == pytest.approx(1.2)
    assert found["output tokens/s"].judgement is Judgement.WORSE
    assert found["TTFT p50"].judgement is Judgement.SAME
    assert not judged(series(SLOWER), series(STEADY)).is_worse


def test_noise_gives_no_verdict() -> None:
    verdict = judged(series(WILD), series((3100, 5200, 8800)))
    assert {each.judgement for each in verdict.comparisons if each.metric == "ITL p95"} == {Judgement.UNCLEAR}
    assert not verdict.is_worse


def test_the_word_does_not_depend_on_the_order_of_repeats() -> None:
    assert judged(series(STEADY), series(WILD)) == judged(series(STEADY[::-1]), series(WILD[::-1]))


@pytest.mark.parametrize(
    ("a", "b", "reason", "allow"),
    [
        (series(STEADY), series(STEADY[:2]), "2 repeats", "repeats"),
        (series(STEADY), series(STEADY, error="gone"), "3 requests failed", None),
        (series(STEADY), series(STEADY, foreign_cpu_s=0.5), "other processes took", "noise"),
        (series(STEADY, model_digest="a"), series(STEADY, model_digest="b"), "other weights", "model"),
        (
            series(STEADY),
            series(STEADY, workload=msgspec.structs.replace(WORKLOAD, output_tokens=12)),
            "no workload in common",
            None,
        ),
    ],
)
def test_what_is_not_comparable_is_said_and_set_aside_only_where_that_makes_sense(
    a: Series, b: Series, reason: str, allow: str | None
) -> None:
    verdict = judged(a, b)
    assert any(reason in obstacle for obstacle in verdict.obstacles)
    assert verdict.comparisons == ()
    everything = judged(a, b, allow=frozenset({"machine", "model", "noise", "repeats"}))
    assert bool(everything.obstacles) is (allow is None)
    if allow is not None:
        assert not judged(a, b, allow=frozenset({allow})).obstacles


def test_another_machine_is_another_result_but_another_commit_is_not() -> None:
    both = [series(STEADY)], [series(STEADY)]
    other = environment(cpu_model="another CPU")
    assert "another CPU" in judge(*both, (environment(), other)).obstacles[0]
    assert not judge(*both, (environment(), other), allow=frozenset({"machine"})).obstacles
    assert not judge(*both, (environment(), environment(git_commit="abc", kernel="7"))).obstacles


def compare(tmp_path: Path, a: Result, b: Result, *options: str, suffix: str = ".json") -> tuple[int, str]:
    paths = [tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"]
    for path, each in zip(paths, (a, b), strict=True):
        write_result(each, path)
    ran = CliRunner().invoke(app, ["bench", "compare", *map(str, paths), *options], env={"COLUMNS": "200"})
    return ran.exit_code, ran.output


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_exit_codes_tell_better_worse_and_not_comparable_apart(tmp_path: Path, suffix: str) -> None:
    steady, slower = result(series(STEADY)), result(series(SLOWER))
    assert compare(tmp_path, slower, steady, suffix=suffix)[0] == 0
    assert compare(tmp_path, steady, slower, suffix=suffix)[0] == 1
    code, said = compare(tmp_path, steady, result(series(STEADY), cores=64), suffix=suffix)
    assert (code, "cores is 2 against 64" in said) == (3, True)
    assert compare(tmp_path, steady, slower, "--tolerance", "0.3", suffix=suffix)[0] == 0


def test_servers_of_one_file_are_compared_by_name(tmp_path: Path) -> None:
    path = tmp_path / "contest.json"
    write_result(result(series(STEADY, name="fast"), series(SLOWER, name="slow")), path)
    run = CliRunner().invoke
    assert run(app, ["bench", "compare", f"{path}#fast", f"{path}#slow"]).exit_code == 1
    assert run(app, ["bench", "compare", f"{path}#slow", f"{path}#fast"]).exit_code == 0
    wrong = run(app, ["bench", "compare", str(path), f"{path}#fas"])
    assert "fast, slow" in str(wrong.exception)


def test_shown_and_drawn(tmp_path: Path) -> None:
    path, picture = tmp_path / "a.json", tmp_path / "a.svg"
    write_result(result(series(STEADY, name="fast"), series(SLOWER, name="slow")), path)
    run = CliRunner().invoke
    shown = run(app, ["bench", "show", "--markdown", str(path)])
    assert "| W | fast | 3 | 0 |" in shown.output
    assert run(app, ["bench", "plot", str(path), "-o", str(picture)]).exit_code == 0
    assert picture.read_text().lstrip().startswith("<?xml")
    assert "one of .svg" in str(run(app, ["bench", "plot", str(path), "-o", "a.gif"]).exception)
