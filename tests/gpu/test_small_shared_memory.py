"""GPUs that give a block 99 KiB of shared memory, as those not made for data centers do: no other bits, and no launch
that cannot be."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

import kernel_platform
import pytest
from closeness import distance, same_bits
from kernel_platform import Platform
from latent_cases import latent_case
from paged_cases import exact_attention, paged_case

from engine.ops.cuda.attention import Scores, decode_attention, prefill_attention
from wire.errors import SpliceError

SMALL, LARGE = 99 << 10, 227 << 10


@pytest.fixture
def emulated() -> Platform:
    return kernel_platform.emulated()


@pytest.fixture
def limit(emulated: Platform) -> Iterator[Callable[[int], None]]:
    """Sets what a block may have."""
    function = emulated.library.function("emulator_shared_bytes")

    def set_limit(num_bytes: int) -> None:
        function(ctypes.c_int64(num_bytes))

    yield set_limit
    set_limit(LARGE)


@pytest.mark.parametrize("attend", [decode_attention, prefill_attention], ids=["decode", "prefill"])
@pytest.mark.parametrize("window", [None, 100])
def test_heads_of_256_have_the_same_bits_with_one_tile_at_a_time(emulated, limit, attend, window):
    case, scores = (
        paged_case([(200, 70), (0, 1), (255, 2)], (2, 1), 256, emulated.device),
        Scores(1 / 16, window=window),
    )
    found = {}
    for size in (SMALL, LARGE):
        limit(size)
        found[size] = attend(emulated.library, case.q, case.cache, 1, case.rows, scores)
    assert same_bits(found[SMALL], found[LARGE])
    assert distance(found[SMALL], exact_attention(case, scores)) < 6e-3


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128])
def test_other_heads_fit(emulated, limit, head_dim):
    limit(SMALL)
    case, scores = paged_case([(60, 5)], (2, 1), head_dim, emulated.device), Scores(head_dim**-0.5)
    decoded = decode_attention(emulated.library, case.q, case.cache, 1, case.rows, scores)
    assert same_bits(prefill_attention(emulated.library, case.q, case.cache, 1, case.rows, scores), decoded)


@pytest.mark.parametrize("kernel", ["latent_decode", "latent_prefill"])
def test_latents_are_attended_in_smaller_parts(emulated, limit, kernel):
    case = latent_case([(60, 6), (3, 1)], 3, (512, 64), emulated.device)
    found = []
    for size in (SMALL, LARGE):
        limit(size)
        found.append(case.attend(emulated.library, kernel))
    assert same_bits(*found)


def test_a_kernel_that_needs_more_is_refused_before_it_is_launched(emulated, limit):
    case = paged_case([(60, 5)], (2, 1), 256, emulated.device)
    limit(64 << 10)
    with pytest.raises(SpliceError, match=r"prefill_attention: a block needs \d+ bytes of shared memory and has 65536"):
        prefill_attention(emulated.library, case.q, case.cache, 1, case.rows, Scores(1 / 16))
