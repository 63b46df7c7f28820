"""KV blocks on their way out of a pool: gathered, summed, and pulled from another process's memory."""

from __future__ import annotations

import atexit
import multiprocessing
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection

import torch

from benchmarks.gpu.cases.case import BLOCK, HEAD_DIM, HEADS, KV_HEADS, Call, Case, drawn, paged, sets
from engine.ops.cuda.cache import PoolPart, copy_blocks
from engine.ops.cuda.library import Library
from engine.ops.cuda.push import rope_store_and_push
from engine.steps.peer_rows import PeerRows
from kvtransfer.cuda_runtime import CudaRuntime
from kvtransfer.device_kernels import CudaBlockKernels

_LAYERS = 32
_SPANS = _LAYERS * 2 * KV_HEADS
_BLOCK_BYTES = _SPANS * BLOCK * HEAD_DIM * 2


def cases() -> Iterator[Case]:
    for blocks in (32, 1024):
        moved = 2 * blocks * _BLOCK_BYTES
        name = f"gather of {blocks} KV blocks of {_LAYERS} layers"
        yield Case(name, "kv_copy", moved, 0, partial(_gathers, blocks))
    yield Case("digests of 256 KV blocks", "kv_checksum", 256 * _BLOCK_BYTES, 0, partial(_sums, 256))
    for blocks in (32, 256):
        moved = 2 * blocks * _BLOCK_BYTES
        name = f"pull of {blocks} KV blocks from another process"
        yield Case(name, "kv_copy", moved, 0, partial(_pulls, blocks), partial(_copies, blocks), "device memcpy")
    for rows in (64, 8192):
        moved = rows * HEAD_DIM * (4 * (HEADS + 2 * KV_HEADS) + 4 + 4 * KV_HEADS)
        name = f"rope and KV write, {rows} rows, pushed to another process"
        yield Case(name, "rope_push", moved, 6 * rows * (HEADS + KV_HEADS) * HEAD_DIM, partial(_pushes, rows))


def _gathers(blocks: int, library: Library) -> list[Call]:
    pool = drawn(2 * blocks, _LAYERS, 2, KV_HEADS, BLOCK, HEAD_DIM)
    buffer = torch.empty_like(pool[:blocks])
    ids = torch.randperm(2 * blocks, device="cuda")[:blocks].contiguous()
    return [partial(copy_blocks, library, PoolPart(buffer, None), PoolPart(pool, ids), blocks, _LAYERS, KV_HEADS)]


def _sums(blocks: int, library: Library) -> list[Call]:
    kernels = CudaBlockKernels(library.path, _SPANS)
    pool, ids = _pool(blocks), torch.arange(blocks, device="cuda")
    sums = torch.empty(blocks, 16, dtype=torch.uint8, device="cuda")
    workspace = torch.empty(kernels.checksum_workspace(blocks, _BLOCK_BYTES), dtype=torch.uint8, device="cuda")

    def call() -> None:
        places = (sums.data_ptr(), pool.data_ptr(), ids.data_ptr())
        kernels.checksum(*places, blocks, _BLOCK_BYTES, workspace.data_ptr(), _stream())

    return [call]


def _pulls(blocks: int, library: Library) -> list[Call]:
    kernels, pool = CudaBlockKernels(library.path, _SPANS), _pool(blocks)
    address = CudaRuntime().open_export(_lender(2 * blocks * _BLOCK_BYTES))
    ours = torch.arange(blocks, device="cuda")
    theirs = torch.randperm(2 * blocks, device="cuda")[:blocks].contiguous()

    def call() -> None:
        places = (pool.data_ptr(), ours.data_ptr(), address, theirs.data_ptr())
        kernels.copy_blocks(*places, blocks, _BLOCK_BYTES, _stream())

    return [call]


def _copies(blocks: int) -> list[Call]:
    to, source = _pool(blocks), _pool(blocks)
    return [lambda: to.copy_(source)]


def _pushes(rows: int, library: Library) -> list[Call]:
    cache, at = paged(1, max(rows, BLOCK), rows)
    address = CudaRuntime().open_export(_lender(cache.nbytes))
    angles, positions = torch.rand(rows, HEAD_DIM, device="cuda"), torch.arange(rows, device="cuda")
    slots = at.block_tables[0].long()[positions // BLOCK] * BLOCK + positions % BLOCK
    peers = PeerRows(torch.full_like(slots, address), slots)
    calls: list[Call] = []
    for _ in sets(4 * rows * (HEADS + 2 * KV_HEADS) * HEAD_DIM):
        q, k, v = torch.split(drawn(rows, HEADS + 2 * KV_HEADS, HEAD_DIM), [HEADS, KV_HEADS, KV_HEADS], dim=1)
        calls.append(partial(rope_store_and_push, library, q, k, v, positions, angles, cache, 0, slots, peers))
    return calls


def _pool(blocks: int) -> torch.Tensor:
    return torch.zeros(blocks, _BLOCK_BYTES, dtype=torch.uint8, device="cuda")


def _stream() -> int:
    return int(torch.cuda.current_stream().cuda_stream)


def _lender(nbytes: int) -> bytes:
    """The handle of so much memory of another process, which holds it until this one ends."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_lend, args=(nbytes, theirs), daemon=True)
    process.start()
    theirs.close()
    atexit.register(process.kill)
    if not ours.poll(60):
        raise RuntimeError("the process that lends its memory did not start")
    handle: bytes = ours.recv()
    return handle


def _lend(nbytes: int, pipe: Connection) -> None:
    runtime = CudaRuntime()
    pipe.send(runtime.export(runtime.allocate(nbytes))[0])
    pipe.poll(None)  # the other end is never written to: it ends with its process
