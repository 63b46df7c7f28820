"""Steps whose rows go to a peer as well: the peer's blocks are the local ones, whole or not at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from device_models import LATENT_SPEC, SPEC, bound, device_decoder, runtime_of
from device_run import BUCKETS, PROMPTS

from engine.device.kv_memory import DeviceKVCache
from engine.steps.batch import SequenceSlice, StepBatch
from engine.steps.peer_blocks import PeerBlocks

SPECS = {"keys_and_values": SPEC, "latents": LATENT_SPEC}


@pytest.fixture
def make(platform):
    def model(spec=SPEC):
        return bound(device_decoder(platform, runtime_of(platform), BUCKETS, spec), platform, 8)

    return model


@pytest.fixture
def make_peer(platform):
    def cache(model) -> torch.Tensor:
        memory = DeviceKVCache.zeros(model.kv_layout(32, "auto"), 6, platform.device).elements()
        return memory.fill_(float("nan"))

    return cache


def _bits(tensor: torch.Tensor) -> np.ndarray:
    return tensor.view(torch.int16).cpu().numpy()


def _step(model, *slices: SequenceSlice) -> np.ndarray:
    return model.forward(StepBatch(slices)).host(slice(None)).copy()


@pytest.mark.parametrize("kind", SPECS)
def test_rows_of_a_prompt_lie_in_the_granted_blocks_as_they_lie_here(make, make_peer, kind):
    plain, model = make(SPECS[kind]), make(SPECS[kind])
    peer = make_peer(model)
    here = SequenceSlice(PROMPTS[0], 0, [1, 2], True)
    other = SequenceSlice(PROMPTS[1], 0, [4], True)
    there = PeerBlocks(peer.data_ptr(), 0, (5, 3))
    wanted, found = _step(plain, here, other), _step(model, _to(here, there), other)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(_bits(model._kv_cache), _bits(plain._kv_cache))
    rows = _bits(peer)
    np.testing.assert_array_equal(rows[5], _bits(plain._kv_cache)[1])
    tail = len(PROMPTS[0]) - 32
    np.testing.assert_array_equal(rows[3][:, :, :, :tail], _bits(plain._kv_cache)[2][:, :, :, :tail])
    untouched = _bits(make_peer(model))
    np.testing.assert_array_equal(rows[3][:, :, :, tail:], untouched[3][:, :, :, tail:])
    np.testing.assert_array_equal(rows[[0, 1, 2, 4]], untouched[[0, 1, 2, 4]])


def test_a_row_of_its_own_is_pushed_too_and_blocks_that_are_not_granted_stay(make, make_peer):
    """The last token of a prompt that was cached is a step that would be replayed: graphs store here alone."""
    model = make()
    peer = make_peer(model)
    _step(model, SequenceSlice(PROMPTS[0], 0, [1, 2], True))
    there = PeerBlocks(peer.data_ptr(), 1, (4,))
    replays = SequenceSlice([7], 40, [1, 2], True)
    wanted = _step(model, replays)
    np.testing.assert_array_equal(_step(model, _to(replays, there)), wanted)
    rows, untouched = _bits(peer), _bits(make_peer(model))
    np.testing.assert_array_equal(rows[4][:, :, :, 8], _bits(model._kv_cache)[2][:, :, :, 8])
    rows[4][:, :, :, 8] = untouched[4][:, :, :, 8]
    np.testing.assert_array_equal(rows, untouched)


def test_slots_beyond_what_was_granted_or_announced_already_stay():
    granted = PeerBlocks(4096, 2, (9, 4, 6))
    places = [-1, 9 * 4 + 2, 9 * 4 + 3, 4 * 4, 4 * 4 + 1]
    assert granted.slots(7, 1, 4).tolist() == places[:1]
    assert granted.slots(10, 4, 4).tolist() == places[1:]
    assert granted.slots(19, 2, 4).tolist() == [6 * 4 + 3, -1]
    assert granted.from_block(3) == PeerBlocks(4096, 3, (4, 6))
    assert granted.from_block(0) == granted
    assert granted.from_block(9).blocks == ()
    assert granted.from_block(9).slots(10, 3, 4).tolist() == [-1] * 3


def _to(part: SequenceSlice, there: PeerBlocks) -> SequenceSlice:
    return SequenceSlice(part.token_ids, part.start, part.block_table, part.wants_logits, peer=there)


def test_a_model_of_whose_layers_one_cannot_push_does_not(make):
    model = make()
    assert model.pushes
    decoder = model._decoder
    ops = replace(decoder._ops, rope_and_push=None)
    decoder._blocks[1]._attention._ops = ops
    assert not model.pushes
