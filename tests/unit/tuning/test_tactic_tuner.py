"""Tuning with real runners and scripted times: the fastest that is right is taken, whatever is wrong is left out."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from scripted_timer import ScriptedTimer

from engine.numerics import numerics_id
from engine.tuning.cache import TacticCache
from engine.tuning.machine import MachineKey
from engine.tuning.products import linear
from engine.tuning.row_operations import NORM, add_norm, silu_mul
from engine.tuning.runner import Runner
from engine.tuning.shapes import Shape
from engine.tuning.table import TacticTable
from engine.tuning.tuner import Tuner
from wire.errors import ErrorCode, SpliceError

CPU = torch.device("cpu")
BUCKETS = (1, 4, 16)
SHAPE = Shape("linear", 24, 16)
MACHINE = MachineKey("fake", "1", "1", "1", "1")


def _rows_alone(x, weight):
    """A chain over k by itself for every output: keeps rows."""
    out = torch.zeros(x.shape[0], weight.shape[0])
    for index in range(x.shape[1]):
        out += x[:, index : index + 1].float() * weight[:, index].float()
    return out.bfloat16()


def _other(x, weight):
    """As good as the first, and another function."""
    return _rows_alone(x, weight)


def _rows_together(x, weight):
    """Right, but where there are many rows its sums begin at the other end, and it rounds on the way."""
    out, order = torch.zeros(x.shape[0], weight.shape[0]), list(range(x.shape[1]))
    for index in reversed(order) if x.shape[0] >= 16 else order:
        out = (out + x[:, index : index + 1].float() * weight[:, index].float()).bfloat16().float()
    return out.bfloat16()


def _raises(x, weight):
    raise RuntimeError("CUDA error: invalid configuration argument")


def _transposed(x, weight):
    return (x.float() @ weight.float().t()).t().bfloat16()


def _wrong(x, weight):
    return _rows_alone(x, weight) * 1.05


def _unwritten(x, weight):
    out = _rows_alone(x, weight)
    out[-1, -1] = float("nan")
    return out


def _no_tensor(x, weight):
    return None


PLAIN = Runner("alone", True, _rows_alone)


def _tunable(*runners):
    return replace(linear(None, CPU), runners=runners)


def _seconds(table):
    """By function; a number, or one for each bucket."""

    def seconds(run, rows):
        found = table[run]
        return found[BUCKETS.index(rows)] if isinstance(found, tuple) else found

    return ScriptedTimer(seconds)


def _reasons(entry):
    return {trial.tactic: trial.skipped for trial in entry.skipped}


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (_raises, "raised RuntimeError: CUDA error: invalid configuration"),
        (_transposed, "is of shape"),
        (_wrong, "from exact, allowed are"),
        (_unwritten, "nan from exact"),
        (_no_tensor, "raised TypeError: returned NoneType"),
    ],
)
@pytest.mark.parametrize("mode", ["fast", "deterministic"])
def test_a_runner_that_fails_is_left_out_and_named(caplog, run, reason, mode):
    timer = _seconds({_rows_alone: 1.0, run: 1e-3})
    with caplog.at_level(logging.WARNING):
        entry = (
            Tuner([_tunable(Runner("bad", True, run), PLAIN)], timer, buckets=BUCKETS).tune([SHAPE], mode).entries[0]
        )
    assert {name for _, name in entry.chosen} == {"alone"}
    assert reason in _reasons(entry)["bad"]
    assert caplog.text.count("bad is left out") == 1
    assert all(asked is not run for asked, _, _ in timer.asked), "what is wrong is not timed"


@pytest.mark.parametrize(("mode", "expected"), [("fast", "honest"), ("deterministic", "alone")])
def test_a_runner_that_breaks_its_promise_on_rows_is_left_out_and_one_without_serves_fast_mode_alone(mode, expected):
    liar, honest = Runner("liar", True, _rows_together), Runner("honest", False, _rows_together)
    tunable = replace(_tunable(liar, honest, PLAIN), tolerance=0.05)
    timer = _seconds({_rows_alone: 0.9, _rows_together: 1e-3})
    entry = Tuner([tunable], timer, buckets=BUCKETS).tune([SHAPE], mode).entries[0]
    assert {name for _, name in entry.chosen} == {expected}
    assert "have other bits than in a batch of" in _reasons(entry)["liar"]
    assert "honest" not in _reasons(entry)


def test_a_runner_too_slow_to_wait_for_is_left_out():
    timer = _seconds({_rows_alone: 1e-3, _rows_together: 0.5})
    tunable = _tunable(PLAIN, Runner("slow", False, _rows_together))
    entry = Tuner([replace(tunable, tolerance=0.05)], timer, buckets=BUCKETS).tune([SHAPE], "fast").entries[0]
    assert _reasons(entry)["slow"].startswith("too slow")
    assert {limit for _, _, limit in timer.asked} == {1.0, 0.02}


def test_fast_mode_chooses_by_bucket_and_deterministic_mode_never_by_rows():
    other = Runner("other", True, _other)
    timer = _seconds({_rows_alone: (1e-3, 1e-3, 9e-3), other.run: (2e-3, 2e-3, 1e-3)})
    tuner = Tuner([_tunable(PLAIN, other)], timer, buckets=BUCKETS)
    fast, one = (tuner.tune([SHAPE], mode).entries for mode in ("fast", "deterministic"))
    assert fast[0].chosen == ((1, "alone"), (4, "alone"), (16, "other"))
    assert one[0].chosen == ((0, "other"),)
    table = TacticTable([_tunable(PLAIN, other)], "fast", fast)
    assert [table.runner(SHAPE, rows).name for rows in (1, 3, 5, 16, 1000)] == ["alone", "alone", *["other"] * 3]
    table = TacticTable([_tunable(PLAIN, other)], "deterministic", one)
    assert {table.runner(SHAPE, rows).name for rows in range(1, 200)} == {"other"}


def test_a_runner_that_does_not_take_all_rows_serves_fast_mode_alone():
    few = Runner("few", True, _other, lambda shape, rows: None if rows <= 4 else "4 at most")
    timer = _seconds({_rows_alone: 1e-2, few.run: 1e-3})
    tuner = Tuner([_tunable(few, PLAIN)], timer, buckets=BUCKETS)
    assert tuner.tune([SHAPE], "fast").entries[0].chosen == ((1, "few"), (4, "few"), (16, "alone"))
    entry = tuner.tune([SHAPE], "deterministic").entries[0]
    assert entry.chosen == ((0, "alone"),)
    assert entry.skipped == ()


def test_what_is_kept_is_not_tried_again_until_there_are_other_runners(tmp_path):
    timer = _seconds({_rows_alone: 1e-3})
    cache = TacticCache(tmp_path, MACHINE)
    first = Tuner([_tunable(PLAIN)], timer, cache, buckets=BUCKETS).tune([SHAPE, SHAPE], "fast")
    assert (len(first.entries), first.from_store, len(timer.asked)) == (1, 0, 3)
    again = Tuner([_tunable(PLAIN)], timer, cache, buckets=BUCKETS).tune([SHAPE], "fast")
    assert (again.entries, again.from_store, len(timer.asked)) == (first.entries, 1, 3)
    more = _tunable(Runner("new", True, _other), PLAIN)
    timer = ScriptedTimer(lambda run, rows: 1e-3)
    wider = Tuner([more], timer, cache, buckets=BUCKETS).tune([SHAPE], "fast")
    assert (wider.from_store, wider.entries[0].chosen[0]) == (0, (1, "new"))


class _ReadBefore(TacticCache):
    """Reads, the first time, before anybody wrote."""

    has_read = False

    def read(self):
        found = super().read() if self.has_read else {}
        self.has_read = True
        return found


@pytest.mark.parametrize(("mode", "agree"), [("deterministic", True), ("fast", False)])
def test_processes_that_tuned_at_once_compute_alike_in_deterministic_mode(tmp_path, mode, agree):
    tunable = _tunable(PLAIN, Runner("other", True, _other))
    chosen = []
    for times in ({_rows_alone: 1e-3, _other: 2e-3}, {_rows_alone: 2e-3, _other: 1e-3}):
        tuner = Tuner([tunable], _seconds(times), _ReadBefore(tmp_path, MACHINE), buckets=BUCKETS)
        chosen.append(tuner.tune([SHAPE], mode).entries[0].chosen)
    assert (chosen[0] == chosen[1]) is agree


class _Notes:
    def __init__(self, fatal=()):
        self.open, self._fatal = [], frozenset(fatal)

    def begin(self, shape, tactic):
        self.open = [(shape, tactic)]

    def end(self):
        self.open = []

    def fatal(self):
        return self._fatal


def test_a_lost_device_ends_tuning_with_the_runner_noted_and_the_next_process_leaves_it_out():
    def deadly(x, weight):
        timer.is_lost = True
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    tunable = _tunable(Runner("deadly", True, deadly), PLAIN)
    timer, notes = _seconds({_rows_alone: 1e-3}), _Notes()
    with pytest.raises(SpliceError, match="the device was lost while deadly was tried for linear:24x16") as caught:
        Tuner([tunable], timer, attempts=notes, buckets=BUCKETS).tune([SHAPE], "fast")
    assert caught.value.code is ErrorCode.INTERNAL_ERROR
    assert notes.open == [(SHAPE, "deadly")]
    timer, notes = _seconds({_rows_alone: 1e-3}), _Notes(notes.open)
    entry = Tuner([tunable], timer, attempts=notes, buckets=BUCKETS).tune([SHAPE], "fast").entries[0]
    assert {name for _, name in entry.chosen} == {"alone"}
    assert _reasons(entry) == {"deadly": "processes ended while they tried this"}
    assert notes.open == []


def test_an_operation_nobody_knows_is_refused():
    with pytest.raises(SpliceError, match=r"operation conv.*linear"):
        Tuner([_tunable(PLAIN)], _seconds({})).tune([Shape("conv", 1, 1)], "fast")


def test_every_real_runner_of_this_machine_is_right():
    """Without a GPU and a library: torch's."""
    norm, gate = add_norm(None, CPU), silu_mul(None, CPU)
    timer = ScriptedTimer(lambda run, rows: 1e-3)
    shapes = [SHAPE, Shape(NORM, 72, 72), Shape("silu_mul", 40, 80)]
    tuned = Tuner([linear(None, CPU), norm, gate], timer, buckets=BUCKETS).tune(shapes, "fast")
    for entry in tuned.entries:
        assert entry.skipped == ()
        assert {name for _, name in entry.chosen} == {f"torch-{torch.__version__}"}


def test_who_finds_in_the_store_that_a_runner_failed_says_so_and_counts_it(caplog, tmp_path):
    tunable = _tunable(Runner("bad", True, _raises), PLAIN)
    store = TacticCache(tmp_path, MACHINE)
    Tuner([tunable], _seconds({_rows_alone: 1.0}), store, buckets=BUCKETS).tune([SHAPE], "fast")
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        tuned = Tuner([tunable], _seconds({}), store, buckets=BUCKETS).tune([SHAPE], "fast")
    assert tuned.from_store == 1
    assert caplog.text.count("bad is left out: raised") == 1
    assert TacticTable([tunable], "fast", tuned.entries).counts.skipped == 1


def test_a_table_counts_what_it_did_not_know_and_takes_the_first_that_can(caplog):
    picky = Runner("picky", True, _rows_alone, lambda shape, rows: None if rows % 2 else "even rows")
    table = TacticTable([_tunable(picky, PLAIN)], "fast", [])
    with caplog.at_level(logging.WARNING):
        assert [table.runner(SHAPE, rows).name for rows in (1, 2, 3)] == ["picky", "alone", "picky"]
    assert caplog.text.count("nothing was tuned for linear:24x16") == 1
    assert (table.counts.hits, table.counts.misses) == (0, 3)
    table = TacticTable([_tunable(picky, PLAIN)], "deterministic", [])
    assert {table.runner(SHAPE, rows).name for rows in (1, 2, 3)} == {"alone"}, "never by rows"


def test_deterministic_mode_without_a_runner_that_keeps_rows_is_an_error():
    loose = _tunable(Runner("loose", False, _rows_alone))
    with pytest.raises(SpliceError, match="no runner that keeps a row's bits can do linear:24x16"):
        TacticTable([loose], "deterministic", []).runner(SHAPE, 1)


def test_tactics_are_part_of_the_numerics_id_in_deterministic_mode():
    other = Runner("other", True, _other)
    wide = Shape("linear", 48, 16)
    timer = _seconds({_rows_alone: 2e-3, other.run: 1e-3})
    tunables = [_tunable(PLAIN, other)]
    entries = Tuner(tunables, timer, buckets=BUCKETS).tune([SHAPE], "deterministic").entries
    table = TacticTable(tunables, "deterministic", entries)
    identity = table.identity([wide, SHAPE, SHAPE])
    assert identity == {"linear:24x16": "other", "linear:48x16": "alone"}
    assert table.runner(wide, 7).name == identity[str(wide)], "an untuned shape runs what the id says"
    tuned, untuned = (
        numerics_id("bfloat16", {}, each.identity([SHAPE])) for each in (table, TacticTable(tunables, "fast", []))
    )
    assert tuned == "bfloat16;linear:24x16=other"
    assert untuned == "bfloat16;tactics=fast"


def test_entries_of_the_other_mode_or_of_runners_that_are_gone_choose_nothing():
    timer = _seconds({_rows_alone: 1e-3})
    entry = Tuner([_tunable(PLAIN)], timer, buckets=BUCKETS).tune([SHAPE], "fast").entries[0]
    gone = replace(entry, chosen=((1, "gone"),))
    for mode, entries in (("deterministic", [entry]), ("fast", [gone])):
        table = TacticTable([_tunable(PLAIN)], mode, entries)
        assert table.runner(SHAPE, 1).name == "alone"
        assert table.counts.misses == 1
