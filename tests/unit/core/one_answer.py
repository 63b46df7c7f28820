"""What every engine promises of a request: one answer, however it is scheduled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine_bench import Bench


def check_one_answer(make_bench: Callable[..., Bench], prompt: list[int], run: dict[str, Any]) -> list[int]:
    """The answer of 40 tokens to a prompt of more than 70: alone, batched, chunked, cached and continued."""
    alone = make_bench().generate(prompt, **run)
    assert len(set(alone)) > 10

    beside = make_bench()
    others = [beside.submit(prompt[i : 3 * i + 2], **{**run, "seed": i}) for i in range(15)]
    key = beside.submit(prompt, **run)
    beside.run()
    assert beside.answer(key) == alone
    assert all(len(beside.answer(other)) == 40 for other in others)

    assert make_bench(max_num_batched_tokens=35, max_num_seqs=2).generate(prompt, **run) == alone

    cached = make_bench()
    cached.generate([*prompt[:70], 1, 2], **run)
    key = cached.submit(prompt, **run)
    cached.run()
    assert (cached.rows[key][0].cached_tokens, cached.answer(key)) == (70, alone)

    again = make_bench()
    key = again.submit(prompt, emitted=alone[:17], **run)
    again.run()
    assert again.answer(key) == alone[17:]
    return alone
