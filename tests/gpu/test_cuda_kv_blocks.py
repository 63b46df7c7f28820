"""Whole blocks as hand-offs copy and sum them: through the face that knows addresses only."""

from __future__ import annotations

import ctypes

import pytest
import torch

from engine.ops.cuda import structs
from kvtransfer import device_kernels
from kvtransfer.device_kernels import CudaBlockKernels
from kvtransfer.device_runtime import DeviceError
from kvtransfer.kv_checksum import BlockRows, checksum
from wire.errors import SpliceError

SIZES = [16, 48, 4096, 16 * 1023, 65536, 65536 + 16, 3 * 65536 - 32]
"""Less than a warp, ragged, one part exactly, one chunk more, three parts but two chunks."""


def _sums(
    platform,
    kernels,
    pool: torch.Tensor,
    ids: torch.Tensor | None,
    blocks: int,
    tokens: torch.Tensor | None = None,
    rows: BlockRows | None = None,
) -> list[bytes]:
    size = pool.shape[1]
    sums = torch.full((blocks, 16), 0xDB, dtype=torch.uint8, device=platform.device)
    workspace = torch.full((kernels.checksum_workspace(blocks, size),), 0xDB, dtype=torch.uint8, device=platform.device)
    at = 0 if ids is None else ids.data_ptr()
    counts = 0 if tokens is None else tokens.data_ptr()
    places = (sums.data_ptr(), pool.data_ptr(), at, blocks, size, workspace.data_ptr(), _stream(platform))
    kernels.checksum(*places, counts, rows)
    return [bytes(row.tolist()) for row in sums.cpu()]


def _stream(platform) -> int:
    return 0 if platform.name == "emulated" else int(torch.cuda.current_stream().cuda_stream)


def _pool(platform, blocks: int, size: int) -> torch.Tensor:
    drawn = torch.randint(256, (blocks, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))
    return drawn.to(platform.device)


def _host(block: torch.Tensor) -> bytes:
    held = block.cpu().contiguous()  # from a GPU a copy, which lives no longer than its name
    return ctypes.string_at(held.data_ptr(), held.numel())


@pytest.mark.parametrize("size", SIZES)
def test_a_block_has_the_checksum_the_host_gives_it(platform, size):
    kernels = CudaBlockKernels(platform.library.path, 1)
    pool = _pool(platform, 4, size)
    ids = torch.tensor([3, 0, 3], device=platform.device)
    assert _sums(platform, kernels, pool, ids, 3) == [checksum(_host(pool[i])) for i in (3, 0, 3)]


def test_a_block_has_one_checksum_alone_among_others_and_in_any_order_of_threads(platform, reseeded):
    kernels = CudaBlockKernels(platform.library.path, 1)
    pool = _pool(platform, 5, 65536 + 48)
    together = _sums(platform, kernels, pool, None, 5)
    for block in range(5):
        reseeded(block + 7)
        assert _sums(platform, kernels, pool, torch.tensor([block], device=platform.device), 1) == [together[block]]


@pytest.mark.parametrize("row_bytes", [16, 160, 1152])
def test_rows_behind_a_blocks_last_token_are_not_looked_at(platform, row_bytes):
    rows, spans, counts = BlockRows(row_bytes, 8), 12, [8, 3, 0, 1]
    kernels = CudaBlockKernels(platform.library.path, 1)
    pool = _pool(platform, 4, spans * 8 * row_bytes)
    ids = torch.tensor([2, 0, 3, 1], device=platform.device)
    tokens = torch.tensor(counts, device=platform.device)
    found = _sums(platform, kernels, pool, ids, 4, tokens, rows)
    blocks = [_host(pool[i]) for i in ids.tolist()]
    assert found == [checksum(block, rows, count) for block, count in zip(blocks, counts, strict=True)]
    assert found[0] == checksum(blocks[0])
    by_row = pool.view(4, spans, 8, row_bytes)
    for block, count in zip(ids.tolist(), counts, strict=True):
        by_row[block, :, count:] ^= 0x5A
    assert _sums(platform, kernels, pool, ids, 4, tokens, rows) == found
    by_row[0, -1, 2, -1] ^= 1
    assert _sums(platform, kernels, pool, ids, 4, tokens, rows)[1] != found[1]


def test_what_damages_a_block_changes_its_checksum():
    block = bytearray(range(256)) * 16
    whole = checksum(bytes(block))
    seen = {whole}
    for at in range(0, len(block), 97):
        for bit in range(8):
            damaged = bytearray(block)
            damaged[at] ^= 1 << bit
            seen.add(checksum(bytes(damaged)))
    assert len(seen) == 1 + 8 * len(range(0, len(block), 97))
    swapped = block[16:32] + block[:16] + block[32:]
    moved = block[-16:] + block[:-16]
    assert len({whole, checksum(swapped), checksum(moved), checksum(block + bytes(16)), checksum(block[:-16])}) == 5
    assert checksum(bytes(4096)) != checksum(bytes(4112))


@pytest.mark.parametrize("spans", [1, 12])
def test_blocks_named_by_two_lists_are_copied_whole_and_nothing_else_is(platform, spans):
    kernels = CudaBlockKernels(platform.library.path, spans)
    theirs, ours = _pool(platform, 6, 12 * 528), _pool(platform, 5, 12 * 528).flip(1).contiguous()
    expected = ours.clone()
    to, source = torch.tensor([4, 0, 2], device=platform.device), torch.tensor([1, 5, 1], device=platform.device)
    expected[to] = theirs[source]
    kernels.copy_blocks(
        ours.data_ptr(), to.data_ptr(), theirs.data_ptr(), source.data_ptr(), 3, 12 * 528, _stream(platform)
    )
    assert torch.equal(ours, expected)


def test_blocks_that_the_kernels_do_not_take_are_refused_before_a_launch(platform):
    kernels = CudaBlockKernels(platform.library.path, 3)
    pool = _pool(platform, 2, 4096)
    place = pool.data_ptr()
    with pytest.raises(DeviceError, match="multiple of 3 spans"):
        kernels.copy_blocks(place, 0, place, 0, 1, 4096, 0)
    with pytest.raises(DeviceError, match="expected a multiple of 16"):
        kernels.copy_blocks(place, 0, place, 0, 1, 24, 0)
    with pytest.raises(DeviceError, match="blocks of 24 bytes, expected a multiple of 16"):
        kernels.checksum(place, place, 0, 1, 24, place, 0)
    with pytest.raises(DeviceError, match="aligned to 16 bytes"):
        kernels.checksum(place + 8, place, 0, 1, 4096, place, 0)
    with pytest.raises(DeviceError, match="8 rows of 24 bytes in blocks of 4096"):
        kernels.checksum(place, place, 0, 1, 4096, place, 0, place, BlockRows(24, 8))
    with pytest.raises(DeviceError, match="5 rows of 16 bytes in blocks of 4096"):
        kernels.checksum(place, place, 0, 1, 4096, place, 0, place, BlockRows(16, 5))


def test_both_faces_of_the_library_are_written_from_one_header():
    assert device_kernels.ABI == structs.ABI


def test_a_library_that_is_not_there_is_explained(tmp_path):
    with pytest.raises(SpliceError, match="make cuda"):
        CudaBlockKernels(tmp_path / "libsplice_cuda.so", 1)
