"""The one choice made among the candidates of every operation."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from engine.ops import reference
from engine.ops.candidate import Candidate
from engine.ops.features import Feature, used_ops
from engine.ops.names import OP_NAMES, Activations, OpName, OpsChoice
from engine.ops.signatures import (
    AddRmsNormOp,
    ExpertsOp,
    FusedRows,
    GatedMulOp,
    LatentAttentionOp,
    LinearOp,
    LmHeadOp,
    PackedWeight,
    PackExpertsOp,
    PackOp,
    PagedAttentionOp,
    PushLatentsOp,
    RmsNormOp,
    RopeAndPushOp,
    RopeAndStoreOp,
    RouteOp,
    RowsOp,
    StoreLatentsOp,
)
from engine.ops.weight_matrix import stacked
from wire.errors import ErrorCode, SpliceError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpTable:
    """The chosen implementation of every operation."""

    linear: LinearOp
    lm_head: LmHeadOp
    rms_norm: RmsNormOp
    add_rms_norm: AddRmsNormOp
    rope_and_store: RopeAndStoreOp
    paged_attention: PagedAttentionOp
    gated_mul: GatedMulOp
    store_latents: StoreLatentsOp
    latent_attention: LatentAttentionOp
    route: RouteOp
    experts: ExpertsOp
    pack_linear: PackOp
    pack_lm_head: PackOp
    pack_experts: PackExpertsOp
    lm_head_rows: RowsOp
    """Embedding lookup: a table shared with the output head is held once."""
    linear_kinds: frozenset[str]
    """Quantised types `pack_linear` takes."""
    lm_head_kinds: frozenset[str]
    expert_kinds: frozenset[str]
    fused: FusedRows | None
    """What leaves rows in the form that `linear` takes, where there is more than one."""
    names: Mapping[OpName, str]
    """Operation to candidate name, of those the model is made of: part of the numerics identity."""
    rope_and_push: RopeAndPushOp | None = None
    """None where rows can be stored in the local cache alone; as for `push_latents`."""
    push_latents: PushLatentsOp | None = None


def select_ops(
    dtype: torch.dtype,
    choice: OpsChoice = "auto",
    features: frozenset[Feature] = frozenset(),
    activations: Activations = "float32",
) -> OpTable:
    """The candidates this process uses for models of `dtype` that need `features` (`features_of` a spec).

    `activations` are those that native kernels multiply quantised weights with.

    The choice depends on the machine, the build, the model and the dtype alone, so two workers of one build agree,
    and no batch shape ever changes it. A missing native module is logged as a warning: everything works, slower.
    """
    candidates = list(reference.CANDIDATES)
    if choice == "auto":
        candidates.extend(_native_candidates(activations))
    return choose(candidates, dtype, features)


def choose(candidates: Iterable[Candidate], dtype: torch.dtype, features: frozenset[Feature] = frozenset()) -> OpTable:
    """The best supported candidate of every operation; ties go to the name first in the alphabet."""
    best: dict[OpName, Candidate] = {}
    for candidate in sorted(candidates, key=lambda c: (-c.rank, c.name)):
        if candidate.op not in best and candidate.serves(dtype, features):
            best[candidate.op] = candidate
    missing = [name for name in OP_NAMES if name not in best]
    if missing:
        raise SpliceError(
            ErrorCode.MISSING_PART,
            f"no implementation of {', '.join(missing)} supports {dtype} here; use dtype float32 or bfloat16",
            param="dtype",
        )
    functions: dict[str, Any] = {name: best[name].fn for name in OP_NAMES}
    names = MappingProxyType({name: best[name].name for name in used_ops(features)})
    _log.info("operations for %s: %s", dtype, ", ".join(f"{op}={name}" for op, name in names.items()))
    return OpTable(
        **functions,
        pack_linear=best["linear"].pack or stacked,
        pack_lm_head=best["lm_head"].pack or stacked,
        pack_experts=best["experts"].pack_experts or reference.EXPERTS.pack,
        lm_head_rows=best["lm_head"].rows or _plain_rows,
        linear_kinds=best["linear"].kinds,
        lm_head_kinds=best["lm_head"].kinds,
        expert_kinds=best["experts"].kinds,
        fused=best["linear"].fused,
        names=names,
        rope_and_push=best["rope_and_store"].push,
        push_latents=best["store_latents"].push,
    )


def _plain_rows(weight: PackedWeight, ids: torch.Tensor) -> torch.Tensor:
    rows: torch.Tensor = weight[ids]
    return rows


def set_num_threads(num_threads: int) -> None:
    """Threads that share each operation of this process, torch's and native ones."""
    torch.set_num_threads(num_threads)
    try:
        importlib.import_module("engine.ops.native_kernels").set_num_threads(num_threads)
    except ImportError:
        return  # not built: `select_ops` says so


def _native_candidates(activations: Activations) -> list[Candidate]:
    try:
        native = importlib.import_module("engine.ops.native")
    except ImportError as error:
        _log.warning("native kernels are not built (%s): using the slower torch operations", error)
        return []
    return list(native.candidates(activations))
