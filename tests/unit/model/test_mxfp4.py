"""MXFP4 blocks become the values they stand for, and those of either format the other's."""

from __future__ import annotations

import gguf
import numpy as np

from engine.formats.mxfp4 import as_gguf, dequantised


def test_every_code_under_every_scale_is_what_gguf_reads() -> None:
    """The two formats hold the same numbers in another order: neighbours in a byte here, halves of a block there."""
    scales = np.arange(2, 255, dtype=np.uint8).reshape(-1, 1)
    codes = np.tile(np.arange(32, dtype=np.uint8) % 16, (len(scales), 1))
    blocks = (codes[:, 0::2] | codes[:, 1::2] << 4).reshape(len(scales), 1, 16)
    stored = np.concatenate((scales, codes[:, :16] | codes[:, 16:] << 4), axis=1)
    with np.errstate(over="ignore"):
        expected = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType.MXFP4)
    assert np.array_equal(dequantised(blocks, scales), expected)
    assert np.array_equal(as_gguf(blocks, scales), stored)


def test_a_row_of_several_blocks_is_turned_block_by_block() -> None:
    rng = np.random.default_rng(7)
    blocks = rng.integers(0, 256, (5, 3, 16), dtype=np.uint8)
    scales = rng.integers(100, 140, (5, 3), dtype=np.uint8)
    found = as_gguf(blocks, scales)
    assert found.shape == (5, 3 * 17)
    expected = gguf.quants.dequantize(found, gguf.GGMLQuantizationType.MXFP4)
    assert np.array_equal(dequantised(blocks, scales), expected)


def test_values_and_their_order() -> None:
    blocks = np.array([[[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE, *[0] * 8]]], dtype=np.uint8)
    found = dequantised(blocks, np.array([[128]], dtype=np.uint8))
    assert found.shape == (1, 32)
    half = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0]
    assert found[0, :16].tolist() == [*half, *(-value for value in half)]


def test_the_smallest_scale_keeps_its_values_and_the_reserved_one_is_not_a_number() -> None:
    blocks = np.full((1, 2, 16), 0x77, dtype=np.uint8)
    found = dequantised(blocks, np.array([[0, 255]], dtype=np.uint8))
    assert (found[0, :32].astype(np.float64) == 6.0 * 2.0**-127).all()
    assert np.isnan(found[0, 32:]).all()
