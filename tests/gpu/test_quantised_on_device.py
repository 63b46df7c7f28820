"""Models whose matrices stay quantised on a device, beside others that are not."""

from __future__ import annotations

import numpy as np
import pytest
from device_models import DrawnByName, bound, device_decoder, reference_decoder, runtime_of
from device_run import BUCKETS, answers, assert_one_set_of_bits
from quantised_cases import CPU, matrix_of, values_of

from engine.blocks.kv_cache import KVCache
from engine.device.buckets import Buckets

_KINDS = {"q_proj": "q4_1", "v_proj": "q8_0", "o_proj": "q4_0", "up_proj": "q5_1", "embed_tokens": "q8_0"}
"""Keys, gates and what leads down are not quantised: stacked matrices are of both makes."""


class InPartQuantised(DrawnByName):
    """Weights that stay as a file quantises them where the operation takes that; elsewhere their very values."""

    def take_matrix(self, name, shape, kinds):
        kind = next((kind for part, kind in _KINDS.items() if part in name), None)
        if kind is None:
            return self.take(name, shape)
        matrix = matrix_of(*shape, kind)
        return matrix if kind in kinds else values_of(matrix).to(self._device, self._dtype)


@pytest.fixture
def make(platform):
    def model(buckets: Buckets | None):
        weights = InPartQuantised(platform.device)
        return bound(device_decoder(platform, runtime_of(platform), buckets, weights=weights), platform, 16)

    return model


def test_it_is_the_model_of_the_values_that_its_matrices_stand_for(make):
    plain = reference_decoder(weights=InPartQuantised(CPU))
    plain.bind_kv_cache(KVCache.zeros(plain.kv_layout(32, "auto"), 16))
    for wanted, found in zip(answers(plain), answers(make(BUCKETS)), strict=True):
        assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 0.06


def test_a_sequence_has_one_set_of_bits_launched_replayed_alone_and_in_company(make):
    assert_one_set_of_bits(make)
