"""The view equals the store, whatever order lists and events come in."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from membership.keys import worker_key, workers_prefix
from membership.view import Entry, KeyEvent, MembershipView, ViewChange
from wire.errors import SpliceError
from wire.kv_layout import KVLayout
from wire.worker_record import Role, WorkerRecord

LAYOUT = KVLayout(num_layers=2, num_kv_heads=1, head_dim=8, block_tokens=32, dtype="float32")


def record(worker_id: str, role: Role = "prefill", incarnation: int = 1, draining: bool = False) -> WorkerRecord:
    return WorkerRecord(
        worker_id=worker_id, incarnation=incarnation, role=role, endpoint="127.0.0.1:1", model="m", card_id="c",
        compat_id="k", layout=LAYOUT, numerics_id="n", num_blocks=8, max_num_seqs=4, max_model_len=256, host_id="h",
        pid=1, draining=draining,
    )  # fmt: skip


def key(worker: WorkerRecord) -> str:
    return worker_key("c", worker.role, worker.worker_id)


def put(worker: WorkerRecord, revision: int) -> KeyEvent:
    return KeyEvent(key(worker), worker.encode(), revision)


def gone(worker: WorkerRecord, revision: int) -> KeyEvent:
    return KeyEvent(key(worker), None, revision)


def listed(*workers: WorkerRecord) -> list[Entry]:
    return [Entry(key(worker), worker.encode(), 1) for worker in workers]


def test_workers_are_sorted_and_found_by_role() -> None:
    view = MembershipView("c")
    b, a, d = record("b"), record("a"), record("d", "decode")
    change = view.snapshot(listed(b, d, a), 5)
    assert set(change.joined) == {a, b, d}
    assert view.workers("prefill") == (a, b)
    assert view.workers("decode") == (d,)
    assert view.workers() == (a, b, d)
    assert view.get("decode", "d") == d
    assert view.get("prefill", "d") is None


def test_a_new_incarnation_is_one_left_and_one_joined() -> None:
    view = MembershipView("c")
    old, new = record("a", incarnation=1), record("a", incarnation=2)
    view.snapshot(listed(old), 5)
    assert view.apply([put(new, 6)]) == ViewChange(joined=(new,), left=(old,))


def test_draining_is_an_update_of_the_same_worker() -> None:
    view = MembershipView("c")
    view.snapshot(listed(record("a")), 5)
    drained = record("a", draining=True)
    assert view.apply([put(drained, 6)]) == ViewChange(updated=(drained,))


def test_a_repeated_event_changes_nothing_and_is_counted() -> None:
    view = MembershipView("c")
    a = record("a")
    view.snapshot(listed(a), 5)
    assert not view.apply([gone(a, 4), gone(a, 5)])
    assert view.workers() == (a,)
    assert view.counters.duplicate_events == 2


def test_all_events_of_one_revision_count() -> None:
    view = MembershipView("c")
    a, b = record("a"), record("b")
    assert view.apply([put(a, 3), put(b, 3)]).joined == (a, b)


def test_who_came_and_went_within_one_batch_is_not_told_of() -> None:
    view = MembershipView("c")
    a = record("a")
    assert not view.apply([put(a, 3), gone(a, 4)])
    view.apply([put(a, 5)])
    assert not view.apply([gone(a, 6), put(a, 7)])
    assert view.workers() == (a,)


@pytest.mark.parametrize(
    "value", [b"", b"{}", b"\xff\xfe", b"[1]", record("other").encode(), record("a", "decode").encode()]
)
def test_an_invalid_record_is_kept_out_with_its_reason(value: bytes) -> None:
    view = MembershipView("c")
    a, b = record("a"), record("b")
    view.snapshot(listed(a, b), 5)
    change = view.apply([KeyEvent(key(a), value, 6)])
    assert change.left == (a,)
    assert [entry.key for entry in change.invalid] == [key(a)]
    assert change.invalid[0].reason
    assert view.invalid == change.invalid
    assert view.workers() == (b,)
    view.check()
    assert not view.snapshot([Entry(key(a), value, 6), *listed(b)], 6).invalid, "the same fault is told once"
    assert view.apply([put(a, 7)]).joined == (a,)
    assert view.invalid == ()
    assert view.counters.invalid_records == 1


def test_half_of_the_workers_may_vanish_unsuspected() -> None:
    view = MembershipView("c")
    a, b = record("a"), record("b")
    view.snapshot(listed(a, b), 5)
    assert view.snapshot(listed(b), 9) == ViewChange(left=(a,))


def test_a_mass_loss_is_suspect_and_held_until_released() -> None:
    view = MembershipView("c")
    a, b, c, d = (record(name) for name in "abcd")
    view.snapshot(listed(a, b, c), 50)
    change = view.snapshot(listed(d), 2)
    assert change == ViewChange(joined=(d,), suspect=True)
    assert view.counters.regressions == 1
    assert view.held == (a, b, c)
    view.check()
    assert not view.apply([put(a, 3)]), "a held worker that registers again never left"
    assert view.held == (b, c)
    restarted = record("b", incarnation=9)
    assert view.apply([put(restarted, 4)]) == ViewChange(joined=(restarted,), left=(b,))
    assert view.release_held() == ViewChange(left=(c,))
    assert view.workers() == (a, restarted, d)
    view.check()


def test_draining_workers_leave_without_suspicion() -> None:
    view = MembershipView("c")
    a, b = record("a", draining=True), record("b", draining=True)
    view.snapshot(listed(a, b), 5)
    assert view.snapshot([], 9) == ViewChange(left=(a, b))


@pytest.mark.parametrize("name", ["", "a/b", "../x", "é", "a" * 200])
def test_a_name_that_is_no_path_part_is_refused(name: str) -> None:
    with pytest.raises(SpliceError):
        workers_prefix(name)
    with pytest.raises(SpliceError):
        worker_key("c", "prefill", name)


WORKERS = st.builds(
    record, st.sampled_from("abcd"), st.sampled_from(["prefill", "decode"]), st.integers(1, 3), st.booleans()
)
# What happens to the store, and what of it reaches the view.
STEPS = st.one_of(
    st.tuples(st.just("put"), WORKERS),
    st.tuples(st.just("garbage"), WORKERS),
    st.tuples(st.just("delete"), WORKERS),
    st.tuples(st.just("deliver"), st.integers(1, 4)),
    st.tuples(st.just("redeliver"), st.integers(1, 4)),
    st.tuples(st.just("list"), st.none()),
    st.tuples(st.just("wipe"), st.none()),
    st.tuples(st.just("release"), st.none()),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_the_view_equals_the_store_after_any_interleaving_of_lists_and_events(  # noqa: PLR0915 (one model, one reading)
    steps: list[tuple[str, object]],
) -> None:
    view = MembershipView("c")
    store: dict[str, bytes] = {}
    valid: dict[str, WorkerRecord] = {}  # told apart by the writer, not by the code under test
    log: list[KeyEvent] = []
    revision, delivered = 1, 0
    seen: dict[tuple[str, str], WorkerRecord] = {}  # what a listener believes

    def tell(change: ViewChange) -> None:
        for worker in change.left:
            assert seen.pop((worker.role, worker.worker_id)).incarnation == worker.incarnation
        for worker in change.joined:
            assert (worker.role, worker.worker_id) not in seen
            seen[worker.role, worker.worker_id] = worker
        for worker in change.updated:
            assert seen[worker.role, worker.worker_id].incarnation == worker.incarnation
            seen[worker.role, worker.worker_id] = worker

    def relist() -> None:
        nonlocal delivered
        tell(view.snapshot([Entry(name, value, 1) for name, value in store.items()], revision))
        delivered = len(log)

    for kind, argument in steps:
        if isinstance(argument, WorkerRecord):
            name = key(argument)
            if kind == "delete" and name not in store:
                continue
            revision += 1
            store.pop(name, None)
            valid.pop(name, None)
            value = None if kind == "delete" else b"junk" if kind == "garbage" else argument.encode()
            if value is not None:
                store[name] = value
            if kind == "put":
                valid[name] = argument
            log.append(KeyEvent(name, value, revision))
        elif isinstance(argument, int):
            start = delivered if kind == "deliver" else max(0, delivered - argument)
            batch = log[start : start + argument] if kind == "deliver" else log[start:delivered]
            tell(view.apply(batch))
            delivered = max(delivered, start + len(batch))
        elif kind == "wipe":  # the stream breaks with the store: nothing of the old history comes any more
            store, valid, log, revision = {}, {}, [], 1
            relist()
        elif kind == "list":
            relist()
        else:
            tell(view.release_held())
        view.check()
        assert tuple(sorted(seen.values(), key=lambda w: (w.worker_id, w.role))) == view.workers()

    tell(view.apply(log[delivered:]))
    held = {key(worker): worker for worker in view.held}
    assert not held.keys() & store.keys()
    assert {key(worker): worker for worker in view.workers()} == valid | held
    view.release_held()
    assert {key(worker): worker for worker in view.workers()} == valid
    assert {entry.key for entry in view.invalid} == store.keys() - valid.keys()
    view.check()
