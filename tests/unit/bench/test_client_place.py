from __future__ import annotations

import os

import pytest

from splice.bench.connection import parse_target
from splice.bench.dialect import DIALECTS
from splice.bench.load import ServerAccess
from splice.bench.measure import measure
from splice.cli.bench.chosen import chosen_cpus
from splice.settings.bench import LoadSettings
from tests.unit.bench.sse_server import Piece, SseServer, answer
from tests.unit.bench.test_load_client import WORKLOAD
from wire.errors import SpliceError


def test_the_client_is_pinned_while_it_measures_and_only_then() -> None:
    before, seen = os.sched_getaffinity(0), []
    one = frozenset({min(before)})
    main = os.getpid()

    def reply(_: dict[str, object]) -> list[Piece]:
        seen.append(os.sched_getaffinity(main))
        return answer(4)

    with SseServer(reply).running() as server:
        access = ServerAccess(parse_target(server.url, None), "tiny", DIALECTS["vllm"])
        repeat = measure(
            WORKLOAD, access, None, seed=0, number=0, timeout_s=20, text_of=None,
            progress=lambda _ended, _all, _tokens: None, client_cpus=one,
        )  # fmt: skip
    assert repeat.summary.failed == 0
    assert seen == [before, set(one)]  # the warm-up, the measured request
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("word", ["4096", "x", "-1"])
def test_cpus_that_are_not_there_are_refused(word: str) -> None:
    with pytest.raises(SpliceError, match="none of the CPUs here"):
        chosen_cpus(LoadSettings(client_cpus=(word,)))
