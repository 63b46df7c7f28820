"""What goes wrong ends the requests it concerns, by name, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from engine_bench import Bench
from history_model import HistoryModel

from wire.errors import ErrorCode

RUN = {"ignore_eos": True, "max_tokens": 8}


class DamagedModel(HistoryModel):
    """Fails where told to."""

    def __init__(self):
        super().__init__()
        self.poisoned_token = None
        self.raising_steps = 0
        self.rows_too_many = 0
        self.deadly_token = None

    def forward(self, batch):
        if self.raising_steps:
            self.raising_steps -= 1
            super().forward(batch)
            raise RuntimeError("a kernel died")
        if any(self.deadly_token in part.token_ids for part in batch.slices):
            raise RuntimeError("a kernel died of this token")
        logits = super().forward(batch)
        wanted = [part for part in batch.slices if part.wants_logits]
        for index, part in enumerate(wanted):
            if self.poisoned_token in part.token_ids:
                logits[index, 3] = np.nan
        return np.concatenate([logits, logits[: self.rows_too_many]])


@pytest.fixture
def bench(make_bench):
    return Bench(make_bench().config, model=DamagedModel())


def test_logits_that_are_not_numbers_fail_that_request_alone_by_name(bench, make_bench):
    bench.model.poisoned_token = 59
    prompts = [[1, 2, 3, 4, 5], [9, 8, 7, 6, 59], [4, 4, 4, 4, 4]]
    good, bad, other = (bench.submit(prompt, **RUN) for prompt in prompts)
    bench.run()
    assert list(bench.failed) == [bad]
    assert bench.failed[bad].code is ErrorCode.INTERNAL_ERROR
    assert f"{bad[0]:016x}" in bench.failed[bad].message
    assert bench.answer(good) == make_bench().generate(prompts[0], **RUN)
    assert bench.answer(other) == make_bench().generate(prompts[2], **RUN)
    assert bench.pool.num_free == 200


def test_what_a_failed_request_computed_is_not_offered_to_others(bench):
    prompt = [*range(30), 59]
    whole = bench.submit(prompt[:30], **{**RUN, "max_tokens": 1})
    bench.run()
    bench.model.poisoned_token = 59
    bench.submit(prompt, **RUN)
    bench.run()
    bench.model.poisoned_token = None
    again = bench.submit(prompt, **RUN)
    bench.run()
    assert bench.rows[whole]
    assert bench.rows[again][0].cached_tokens == 0


def test_a_request_the_model_cannot_compute_takes_nobody_with_it(bench, make_bench):
    bench.model.deadly_token = 59
    prompts = [[1, 2, 3, 4, 5], [9, 8, 7, 6, 59], [4, 4, 4, 4, 4]]
    good, bad, other = (bench.submit(prompt, **RUN) for prompt in prompts)
    bench.run()
    assert list(bench.failed) == [bad]
    assert bench.answer(good) == make_bench().generate(prompts[0], **RUN)
    assert bench.answer(other) == make_bench().generate(prompts[2], **RUN)
    assert bench.pool.num_free == 200


def test_a_passing_fault_of_the_model_costs_no_request(bench, make_bench):
    prompts = [[1, 2, index] for index in range(3)]
    keys = [bench.submit(prompt, **RUN) for prompt in prompts]
    bench.step()
    bench.model.raising_steps = 1
    bench.run()
    assert not bench.failed
    assert [bench.answer(key) for key in keys] == [make_bench().generate(prompt, **RUN) for prompt in prompts]


def test_a_lasting_fault_of_the_model_fails_everybody_by_name_and_the_engine_goes_on(bench, make_bench):
    keys = [bench.submit([1, 2, index], **RUN) for index in range(3)]
    bench.step()
    bench.model.raising_steps = 4
    bench.step()
    assert list(bench.failed) == keys
    assert {error.code for error in bench.failed.values()} == {ErrorCode.INTERNAL_ERROR}
    assert "a kernel died" in bench.failed[keys[0]].message
    assert bench.pool.num_free == 200
    assert bench.generate([1, 2, 0], **RUN) == make_bench().generate([1, 2, 0], **RUN)


def test_logits_of_the_wrong_shape_fail_the_batch(bench):
    bench.model.rows_too_many = 1
    key = bench.submit([1, 2, 3], **RUN)
    bench.run()
    assert "expected (1, 61)" in bench.failed[key].message


def test_an_exception_in_one_requests_sampling_fails_that_request_alone(bench):
    good = bench.submit([1, 2, 3], **RUN)
    bad = bench.submit([1, 2, 3], **RUN, logit_bias={10_000: 1.0})
    bench.run()
    assert list(bench.failed) == [bad]
    assert "IndexError" in bench.failed[bad].message
    assert len(bench.answer(good)) == 8
