"""Operation signatures, their candidates, and the one choice made among them."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, Protocol

import torch

from engine.ops.decoder import CompileDecoder
from engine.ops.weight_matrix import QuantizedMatrix, WeightMatrix
from wire.errors import ErrorCode, SpliceError

_log = logging.getLogger(__name__)

OpName = Literal["linear", "lm_head", "rms_norm", "add_rms_norm", "rope_and_store", "paged_attention", "silu_mul"]
OP_NAMES: tuple[OpName, ...] = (
    "linear",
    "lm_head",
    "rms_norm",
    "add_rms_norm",
    "rope_and_store",
    "paged_attention",
    "silu_mul",
)
OpsChoice = Literal["auto", "reference"]

PackedWeight = Any
"""What `pack` of the chosen linear candidate returned: opaque to everyone but that candidate."""


class PackOp(Protocol):
    """Re-lays a weight once, at load time, for the candidate's own `linear`."""

    def __call__(self, *parts: WeightMatrix) -> PackedWeight:
        """`parts` `[n, K]`, stacked by rows to `[N, K]`: tensors are contiguous, of model dtype; quantised ones are of
        the candidate's `kinds`."""


class RowsOp(Protocol):
    def __call__(self, weight: PackedWeight, ids: torch.Tensor) -> torch.Tensor:
        """Rows `ids` (int64) of what `pack` re-laid, `[len(ids), K]`, exactly; in the model's dtype or float32."""


class LinearOp(Protocol):
    def __call__(self, x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None) -> torch.Tensor:
        """`x` `[M, K]` times the transposed weight `[N, K]`, plus `bias` `[N]`; returns `[M, N]` in x's dtype."""


class LmHeadOp(Protocol):
    def __call__(self, x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
        """As `linear` without bias, but accumulated and returned in float32: `[M, vocab]`."""


class RmsNormOp(Protocol):
    def __call__(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """`x` `[M, H]` divided by its root mean square (fp32 inside), times `weight` `[H]` (arXiv 1910.07467)."""


class AddRmsNormOp(Protocol):
    def __call__(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (`rms_norm(x + residual)`, `x + residual`), both `[M, H]`; may write into its arguments."""


class RopeAndStoreOp(Protocol):
    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        positions: torch.Tensor,
        cos_sin: torch.Tensor,
        kv_cache: torch.Tensor,
        layer: int,
        slots: torch.Tensor,
    ) -> torch.Tensor:
        """Rotates q and k (halves paired: i with i + D/2), writes k and v into the cache, returns the rotated q.

        `q` `[M, num_heads, D]`, `k`, `v` `[M, num_kv_heads, D]`: rows may be strided (views into one fused QKV
        row), the last two axes are contiguous. `positions` `[M]` int64; `cos_sin` `[max_len, D]` float32: cos in
        the first D/2 columns, sin in the rest. `kv_cache` `[num_blocks, num_layers, 2, num_kv_heads, block_tokens,
        D]`, float32 or bfloat16, perhaps other than q's dtype. `slots` `[M]` int64 = block id * block_tokens +
        offset in the block. The result is `[M, num_heads, D]`, contiguous, in q's dtype; q may be overwritten.
        """


class PagedAttentionOp(Protocol):
    def __call__(
        self,
        q: torch.Tensor,
        kv_cache: torch.Tensor,
        layer: int,
        block_tables: torch.Tensor,
        query_starts: torch.Tensor,
        starts: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """Causal attention of every query row over its own sequence's cached keys, its own position included.

        `q` `[M, num_heads, D]` contiguous; head h reads KV head `h // (num_heads // num_kv_heads)`. `block_tables`
        `[S, max_blocks]` int32, padded with 0. Rows `query_starts[s]` to `query_starts[s + 1]` (`[S + 1]` int32)
        belong to sequence s; the first of them stands at absolute position `starts[s]` (`[S]` int32). Cache
        positions after a sequence's last query hold garbage (NaN included) and must not be read into any result.
        fp32 scores and softmax; returns `[M, num_heads, D]` contiguous in q's dtype.
        """


class SiluMulOp(Protocol):
    def __call__(self, gate_up: torch.Tensor) -> torch.Tensor:
        """`gate_up` `[M, 2 * I]`: `silu(first half) * second half`, `[M, I]`, computed in fp32."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One implementation of one operation.

    `supports(dtype)` says whether it runs on this machine for weights and activations of that dtype. The highest
    `rank` wins; the reference has rank 0. The rest belongs to `linear` and `lm_head` only: without `pack` a weight is
    a plain tensor, `rows` goes with `pack`, and `kinds` are the quantised types that `pack` takes as they are.
    """

    op: OpName
    name: str
    fn: Callable[..., Any]
    supports: Callable[[torch.dtype], bool]
    rank: int
    pack: PackOp | None = None
    rows: RowsOp | None = None
    kinds: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class OpTable:
    """The chosen implementation of every operation."""

    linear: LinearOp
    lm_head: LmHeadOp
    rms_norm: RmsNormOp
    add_rms_norm: AddRmsNormOp
    rope_and_store: RopeAndStoreOp
    paged_attention: PagedAttentionOp
    silu_mul: SiluMulOp
    pack_linear: PackOp
    pack_lm_head: PackOp
    lm_head_rows: RowsOp
    """Embedding lookup: a table shared with the output head is held once."""
    linear_kinds: frozenset[str]
    """Quantised types `pack_linear` takes."""
    lm_head_kinds: frozenset[str]
    names: Mapping[OpName, str]
    """Operation to candidate name: part of the numerics identity."""
    compile_decoder: CompileDecoder | None = None
    """Whole steps with the bits of the operations above, where there is such a thing for the dtype."""


def select_ops(dtype: torch.dtype, choice: OpsChoice = "auto") -> OpTable:
    """The candidates this process uses for models of `dtype`.

    The choice depends on the machine, the build and the dtype alone, so two workers of one build agree, and no batch
    shape ever changes it. A missing native module is logged as a warning: everything works, slower.
    """
    from engine.ops import reference  # noqa: PLC0415 - the reference needs Candidate from here

    candidates = list(reference.CANDIDATES)
    if choice == "auto":
        candidates.extend(_native_candidates())
    table = choose(candidates, dtype)
    if dtype == torch.float32 and set(table.names.values()) == {"native"}:
        return replace(table, compile_decoder=importlib.import_module("engine.ops.native").compile_decoder)
    return table


def choose(candidates: Iterable[Candidate], dtype: torch.dtype) -> OpTable:
    """The best supported candidate of every operation; ties go to the name first in the alphabet."""
    best: dict[OpName, Candidate] = {}
    for candidate in sorted(candidates, key=lambda c: (-c.rank, c.name)):
        if candidate.op not in best and candidate.supports(dtype):
            best[candidate.op] = candidate
    missing = [name for name in OP_NAMES if name not in best]
    if missing:
        raise SpliceError(
            ErrorCode.MISSING_PART,
            f"no implementation of {', '.join(missing)} supports {dtype} here; use dtype float32 or bfloat16",
            param="dtype",
        )
    functions: dict[str, Any] = {name: best[name].fn for name in OP_NAMES}
    names = MappingProxyType({name: best[name].name for name in OP_NAMES})
    _log.info("operations for %s: %s", dtype, ", ".join(f"{op}={name}" for op, name in names.items()))
    return OpTable(
        **functions,
        pack_linear=best["linear"].pack or _stack,
        pack_lm_head=best["lm_head"].pack or _stack,
        lm_head_rows=best["lm_head"].rows or _plain_rows,
        linear_kinds=best["linear"].kinds,
        lm_head_kinds=best["lm_head"].kinds,
        names=names,
    )


def _stack(*parts: WeightMatrix) -> torch.Tensor:
    plain: list[torch.Tensor] = []
    for part in parts:
        if isinstance(part, QuantizedMatrix):
            raise TypeError(f"a {part.kind} weight reached an operation that takes plain tensors only")
        plain.append(part)
    return plain[0] if len(plain) == 1 else torch.cat(plain)


def _plain_rows(weight: PackedWeight, ids: torch.Tensor) -> torch.Tensor:
    rows: torch.Tensor = weight[ids]
    return rows


def _native_candidates() -> list[Candidate]:
    try:
        native = importlib.import_module("engine.ops.native")
    except ImportError as error:
        _log.warning("native kernels are not built (%s): using the slower torch operations", error)
        return []
    return list(native.CANDIDATES)
