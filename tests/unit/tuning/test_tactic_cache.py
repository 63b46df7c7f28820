"""What was found, on disk: found again by the same machine alone, whole whoever writes at once, never fatal."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
from dataclasses import fields, replace
from pathlib import Path

import pytest

from engine.tuning.attempts import AttemptNotes
from engine.tuning.cache import TacticCache
from engine.tuning.decision import Entry, Trial
from engine.tuning.machine import MachineKey
from engine.tuning.shapes import Shape

MACHINE = MachineKey("NVIDIA H200", "580.95.05", "13.0", "0123456789abcdef", "2.11.0")
WRITERS, ENTRIES = 4, 12


def _entry(n: int, tactic: str = "a", mode: str = "fast", tried: tuple[str, ...] = ("a", "b")) -> Entry:
    trials = (Trial("a", 1, 1e-5), Trial("b", 1, None, "raised RuntimeError: no"))
    return Entry(Shape("linear", n, 64), mode, tried, ((0 if mode == "deterministic" else 1, tactic),), trials)


def test_what_was_kept_is_read_again(tmp_path):
    entries = [_entry(8), _entry(16, "b"), _entry(8, mode="deterministic")]
    TacticCache(tmp_path / "new" / "folder", MACHINE).add(entries)
    again = TacticCache(tmp_path / "new" / "folder", MACHINE).read()
    assert set(again.values()) == set(entries)
    assert again[Shape("linear", 16, 64), "fast"].chosen == ((1, "b"),)


@pytest.mark.parametrize("name", [field.name for field in fields(MachineKey)])
def test_a_machine_that_differs_in_one_thing_knows_nothing(tmp_path, name):
    TacticCache(tmp_path, MACHINE).add([_entry(8)])
    other = replace(MACHINE, **{name: "other"})
    assert TacticCache(tmp_path, other).read() == {}
    TacticCache(tmp_path, other).add([_entry(16)])
    assert list(TacticCache(tmp_path, MACHINE).read().values()) == [_entry(8)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: b"",
        lambda text: b"\xff\xfe" + text,
        lambda text: text.replace(b'"seconds"', b'"Seconds"'),
        lambda text: text.replace(b'"format": 1', b'"format": 2'),
        lambda text: text.replace(b"NVIDIA H200", b"NVIDIA H100"),
        lambda text: text.replace(b'"fast"', b'"slow"'),
    ],
    ids=["cut", "empty", "no text", "another field", "another format", "another machine", "another mode"],
)
def test_a_file_that_cannot_be_used_is_said_and_written_anew(tmp_path, caplog, damage):
    cache = TacticCache(tmp_path, MACHINE)
    cache.add([_entry(8)])
    before = cache.path.read_bytes()
    assert damage(before) != before
    cache.path.write_bytes(damage(before))
    with caplog.at_level(logging.WARNING):
        assert cache.read() == {}
    assert str(cache.path) in caplog.text
    cache.add([_entry(16)])
    assert list(TacticCache(tmp_path, MACHINE).read().values()) == [_entry(16)]


def test_a_deterministic_choice_that_came_first_stays_unless_there_are_other_runners(tmp_path):
    cache = TacticCache(tmp_path, MACHINE)
    first, second = (_entry(8, name, "deterministic") for name in ("a", "b"))
    assert list(cache.add([first]).values()) == [first]
    assert list(cache.add([second]).values()) == [first]
    wider = _entry(8, "b", "deterministic", ("a", "b", "c"))
    assert list(cache.add([wider]).values()) == [wider]


def test_a_fast_choice_is_the_latest(tmp_path):
    cache = TacticCache(tmp_path, MACHINE)
    cache.add([_entry(8, "a")])
    assert list(cache.add([_entry(8, "b")]).values()) == [_entry(8, "b")]


def test_where_nothing_can_be_written_the_findings_hold_for_this_process(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cache = TacticCache(tmp_path / "file" / "folder", MACHINE)
    with caplog.at_level(logging.WARNING):
        assert list(cache.add([_entry(8)]).values()) == [_entry(8)]
    assert "not kept" in caplog.text


def _write(folder: Path, writer: int) -> None:
    cache = TacticCache(folder, MACHINE)
    for index in range(ENTRIES):
        cache.add([_entry(1000 * writer + index), _entry(index, "ab"[writer % 2], "deterministic")])


def test_processes_that_write_at_once_lose_nothing_and_agree(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(tmp_path, writer)) for writer in range(WRITERS)]
    for writer in writers:
        writer.start()
    read = 0
    cache = TacticCache(tmp_path, MACHINE)
    while any(writer.is_alive() for writer in writers):
        if cache.path.exists():
            found = json.loads(cache.path.read_bytes())
            assert len(found["entries"]) >= read
            read = len(found["entries"])
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    kept = cache.read()
    assert {shape.n for shape, mode in kept if mode == "fast"} == {
        1000 * writer + index for writer in range(WRITERS) for index in range(ENTRIES)
    }
    assert sum(mode == "deterministic" for _, mode in kept) == ENTRIES
    assert [path.name for path in tmp_path.iterdir() if path.name not in (cache.path.name,)] == [
        f"{cache.path.stem}.lock"
    ]


def _die_trying(folder: Path, shape: Shape) -> None:
    AttemptNotes(folder, MACHINE).begin(shape, "deadly")
    os._exit(9)


def _ended_trying(folder: Path, shape: Shape) -> None:
    ended = multiprocessing.get_context("fork").Process(target=_die_trying, args=(folder, shape))
    ended.start()
    ended.join()
    assert ended.exitcode == 9


def test_what_two_processes_were_trying_when_they_ended_is_left_out_by_the_next(tmp_path):
    shape, own = Shape("linear", 64, 32), AttemptNotes(tmp_path, MACHINE)
    own.begin(shape, "deadly")
    assert own.fatal() == frozenset(), "a process that runs"
    own.end()
    _ended_trying(tmp_path, shape)
    assert own.fatal() == frozenset(), "once may be chance"
    _ended_trying(tmp_path, shape)
    assert own.fatal() == {(shape, "deadly")}
    assert AttemptNotes(tmp_path, replace(MACHINE, driver="590")).fatal() == frozenset()


def test_what_a_later_process_tries_and_outlives_was_not_why_an_earlier_one_ended(tmp_path):
    shape, own = Shape("linear", 64, 32), AttemptNotes(tmp_path, MACHINE)
    _ended_trying(tmp_path, shape)
    own.begin(shape, "deadly")
    own.end()
    _ended_trying(tmp_path, shape)
    assert own.fatal() == frozenset()


def test_tuning_goes_on_where_no_notes_can_be_kept(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    notes = AttemptNotes(tmp_path / "file" / "folder", MACHINE)
    with caplog.at_level(logging.WARNING):
        for tactic in ("a", "b"):
            notes.begin(Shape("linear", 64, 32), tactic)
            notes.end()
    assert caplog.text.count("no notes") == 1
    assert notes.fatal() == frozenset()


def test_a_note_that_says_nothing_is_reported_and_passed_over(tmp_path, caplog):
    notes = AttemptNotes(tmp_path, MACHINE)
    (tmp_path / f"tactics-{MACHINE.digest}.trying-{2**22 + 1}").write_text("half")
    with caplog.at_level(logging.WARNING):
        assert notes.fatal() == frozenset()
    assert "says nothing" in caplog.text
