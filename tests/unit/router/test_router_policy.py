"""Who gets a request: compatible, available, cheapest; affinity lowers a cost and never pins."""

from __future__ import annotations

from typing import Any

import msgspec

from router.affinity import PrefixMemory
from router.events import NoPair, Picked, WorkerKey
from router.policy import Demand, WorkerLoad, pick
from wire.errors import ErrorCode
from wire.kv_layout import KVLayout
from wire.worker_record import Role, WorkerRecord

LAYOUT = KVLayout(num_layers=1, num_kv_heads=1, head_dim=8, block_tokens=32, dtype="float32")


def worker(name: str, role: Role, compat: str = "c", model: str = "m", digest: str = "w", **load: Any) -> WorkerLoad:
    record = WorkerRecord(
        worker_id=name,
        incarnation=1,
        role=role,
        endpoint="x:1",
        model=model,
        card_id="card",
        compat_id=compat,
        layout=LAYOUT,
        numerics_id="n",
        num_blocks=1000,
        max_num_seqs=64,
        max_model_len=4096,
        host_id="h",
        pid=1,
    )
    return WorkerLoad(record=record, model_digest=digest, **{"free_blocks": 1000, **load})


def demand(tokens: int = 640, cached: dict[WorkerKey, int] | None = None, **more: Any) -> Demand:
    return Demand(model="m", model_digest="w", num_tokens=tokens, cached_tokens=cached or {}, **more)


def names(choice: Picked | NoPair) -> tuple[str, str | None]:
    assert isinstance(choice, Picked)
    return choice.decode[0], choice.prefill[0] if choice.prefill else None


def test_only_equal_compat_ids_are_paired() -> None:
    workers = [worker("d", "decode", "a"), worker("p", "prefill", "b"), worker("q", "prefill", "a")]
    assert names(pick(demand(), workers)) == ("d", "q")
    assert names(pick(demand(), workers[:2])) == ("d", None)


def test_a_pair_is_preferred_to_decode_alone_even_if_decode_alone_is_idle() -> None:
    workers = [worker("d", "decode", "a", running=40), worker("p", "prefill", "a"), worker("e", "decode", "b")]
    assert names(pick(demand(), workers)) == ("d", "p")


def test_other_models_other_weights_excluded_and_draining_workers_get_nothing() -> None:
    workers = [
        worker("d0", "decode", model="other"),
        worker("d1", "decode", digest="other"),
        worker("d2", "decode"),
        worker("d3", "decode", draining=True),
        worker("d4", "decode"),
    ]
    assert names(pick(demand(), workers, {("d2", 1)})) == ("d4", None)
    draining = pick(demand(), workers, {("d2", 1), ("d4", 1)})
    assert isinstance(draining, NoPair)
    assert draining.error.code is ErrorCode.DRAINING
    nobody = pick(demand(), workers[:2])
    assert isinstance(nobody, NoPair)
    assert nobody.error.code is ErrorCode.NO_DECODE_WORKERS
    assert nobody.error.retry_after_s


def test_a_record_that_says_draining_counts_as_well_as_a_heartbeat() -> None:
    drained = worker("d", "decode")
    drained = WorkerLoad(msgspec.structs.replace(drained.record, draining=True), model_digest="w")
    assert isinstance(pick(demand(), [drained]), NoPair)


def test_an_answer_under_way_goes_on_with_the_same_arithmetic_only() -> None:
    workers = [worker("d0", "decode", "a"), worker("d1", "decode", "b")]
    assert names(pick(demand(compat_id="b"), workers)) == ("d1", None)
    choice = pick(demand(compat_id="c"), workers)
    assert isinstance(choice, NoPair)
    assert choice.error.code is ErrorCode.NO_COMPATIBLE_PAIR


def test_queued_prefill_work_load_and_memory_pressure_cost() -> None:
    pool = [worker("p0", "prefill", queued_prefill_tokens=4000), worker("p1", "prefill", queued_prefill_tokens=100)]
    assert names(pick(demand(), [worker("d", "decode"), *pool]))[1] == "p1"
    assert names(pick(demand(), [worker("d0", "decode", running=60), worker("d1", "decode", running=2)]))[0] == "d1"
    assert names(pick(demand(), [worker("d0", "decode", free_blocks=25), worker("d1", "decode")]))[0] == "d1"


def test_affinity_attracts_until_the_queue_outweighs_it() -> None:
    cached = {("p0", 1): 608}
    decode = worker("d", "decode")
    for queued, expected in ((0, "p0"), (300, "p0"), (5000, "p1")):
        pool = [worker("p0", "prefill", queued_prefill_tokens=queued), worker("p1", "prefill")]
        assert names(pick(demand(cached=cached), [decode, *pool]))[1] == expected


def test_ties_fall_by_seed_not_by_order() -> None:
    workers = [worker(f"d{index}", "decode") for index in range(4)]
    chosen = [names(pick(demand(tie_seed=seed), workers))[0] for seed in range(200)]
    assert chosen == [names(pick(demand(tie_seed=seed), workers[::-1]))[0] for seed in range(200)]
    assert min(chosen.count(f"d{index}") for index in range(4)) > 20


def test_prefix_memory_counts_leading_blocks_and_stays_bounded() -> None:
    memory = PrefixMemory(max_blocks_per_worker=3)
    key = ("p", 1)
    memory.record(key, [b"a", b"b", b"c"])
    assert memory.leading_blocks(key, [b"a", b"b", b"x", b"c"]) == 2
    memory.record(key, [b"d"])
    assert memory.leading_blocks(key, [b"a"]) == 0
    assert memory.leading_blocks(key, [b"b", b"c", b"d"]) == 3
    memory.forget(key)
    assert memory.leading_blocks(key, [b"b"]) == 0
