from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from splice.bench.bandwidth import floor, measure_bandwidth
from splice.bench.result import write_result
from splice.cli.main import app
from tests.unit.bench.bench_results import result, series


def test_the_floor_is_bytes_over_bandwidth_and_the_share_what_was_reached() -> None:
    found = floor(100_000_000, 50e9, 4.0)
    assert (found.floor_ms, found.measured_ms, found.share) == (2.0, 4.0, 0.5)


def test_bandwidth_is_that_of_memory() -> None:
    found = measure_bandwidth(8 << 20, 2)
    # No memory is slower, and none this code could reach is faster.
    assert 1e8 < found.read < 2e12
    assert 1e8 < found.copy < 2e12


def test_the_share_of_each_server_is_printed(tmp_path: Path) -> None:
    path, weights = tmp_path / "r.json", tmp_path / "weights"
    weights.write_bytes(bytes(1 << 20))
    write_result(result(series((5000,) * 3, name="one"), series((9000,) * 3, name="two")), path)
    said = CliRunner().invoke(app, ["bench", "floor", str(path), "--model-file", str(weights)]).output
    assert "W one: 5.00 ms a token" in said.replace("\n", " ")
    assert "W two: 9.00 ms a token" in said.replace("\n", " ")


def test_a_result_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"x")
    ran = CliRunner().invoke(
        app, ["bench", "floor", str(tmp_path / "none.json"), "--model-file", str(tmp_path / "weights")]
    )
    assert "cannot read" in str(ran.exception)
