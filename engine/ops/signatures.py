"""The signature of every operation: what its arguments are and what it promises. `reference` is their meaning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch

from engine.ops.head_norms import HeadNorms
from engine.ops.latent_norm import LatentNorm
from engine.ops.weight_matrix import ExpertMatrices, WeightMatrix
from engine.spec import Activation, RoutingSpec
from engine.steps.peer_rows import PeerRows
from engine.steps.step_plan import StepBounds

PackedWeight = Any
"""What `pack` of the chosen linear candidate returned: opaque to everyone but that candidate."""
RowsForm = Any
"""What rows a packed weight takes in place of a tensor: as opaque."""
LinearRows = Any
"""A tensor, or such rows, which have a `len`."""
PackedExperts = Any
"""What `pack_experts` of the chosen candidate returned, in the same way."""


class PackOp(Protocol):
    """Re-lays a weight once, at load time, for the candidate's own `linear`."""

    def __call__(self, *parts: WeightMatrix) -> PackedWeight:
        """`parts` `[n, K]`, stacked by rows to `[N, K]`: tensors are contiguous, of model dtype; quantised ones are of
        the candidate's `kinds`."""


class RowsOp(Protocol):
    def __call__(self, weight: PackedWeight, ids: torch.Tensor) -> torch.Tensor:
        """Rows `ids` (int64) of what `pack` re-laid, `[len(ids), K]`, exactly; in the model's dtype or float32."""


class FusedRows(Protocol):
    """Norms and gates that leave what comes out of them in the form that the next product takes. No bit of the product
    depends on whether they do."""

    def form(self, weight: PackedWeight) -> RowsForm | None:
        """What a packed weight takes; None: a tensor and nothing else."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, form: RowsForm) -> LinearRows:
        """See `RmsNormOp`."""

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, form: RowsForm
    ) -> tuple[LinearRows, torch.Tensor]:
        """See `AddRmsNormOp`."""

    def gated_mul(self, gate_up: torch.Tensor, activation: Activation, form: RowsForm) -> LinearRows:
        """See `GatedMulOp`."""


class LinearOp(Protocol):
    def __call__(self, x: LinearRows, weight: PackedWeight, bias: torch.Tensor | None) -> torch.Tensor:
        """`x` `[M, K]` times the transposed weight `[N, K]`, plus `bias` `[N]`; returns `[M, N]` in x's dtype. `x` is a
        tensor, or of the `RowsForm` of the weight."""


class LmHeadOp(Protocol):
    def __call__(self, x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
        """As `linear` without bias, but accumulated and returned in float32: `[M, vocab]`."""


class RmsNormOp(Protocol):
    def __call__(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """`x` `[M, H]` divided by its root mean square (fp32 inside), times `weight` `[H]` (arXiv 1910.07467).

        `weight` is in x's dtype, or float32 for models that multiply before they round.
        """


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
        norms: HeadNorms | None = None,
    ) -> torch.Tensor:
        """Norms heads of q and k where `norms` are given, rotates them (i with i + R/2 of the first R dimensions, which
        may be 0), writes k and v into the cache, returns the rotated q.

        `q` `[M, num_heads, D]`, `k`, `v` `[M, num_kv_heads, D]`: rows may be strided (views into one fused QKV
        row), the last two axes are contiguous. `positions` `[M]` int64; `cos_sin` `[max_len, R]` float32, R <= D: cos
        in the first R/2 columns, sin in the rest. `kv_cache` `[num_blocks, num_layers, 2, num_kv_heads, block_tokens,
        D]`, float32 or bfloat16, perhaps other than q's dtype, or of 8 bits with scales: see `engine.ops.scaled_kv`.
        `slots` `[M]` int64 = block id * block_tokens + offset in the block. The result is `[M, num_heads, D]`,
        contiguous, in q's dtype; q may be overwritten.
        """


class RopeAndPushOp(Protocol):
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
        peers: PeerRows,
        norms: HeadNorms | None = None,
    ) -> torch.Tensor:
        """As `RopeAndStoreOp`, to the bit, and rows of k and v are stored a second time where `peers` say."""


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
        *,
        window: int | None = None,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
        bounds: StepBounds | None = None,
    ) -> torch.Tensor:
        """Causal attention of every query row over its own sequence's cached keys, its own position included.

        `q` `[M, num_heads, D]` contiguous; head h reads KV head `h // (num_heads // num_kv_heads)`. `block_tables`
        `[S, max_blocks]` int32, padded with 0. Rows `query_starts[s]` to `query_starts[s + 1]` (`[S + 1]` int32)
        belong to sequence s; the first of them stands at absolute position `starts[s]` (`[S]` int32). Cache
        positions after a sequence's last query hold garbage (NaN included) and must not be read into any result.
        A query at p sees positions above p - `window`. Scores are q·k * `scale`, then, with `softcap`, `softcap *
        tanh(score / softcap)`; `sinks` `[num_heads]` float32 are logits that take part in the softmax and have no
        value. fp32 scores and softmax; returns `[M, num_heads, D]` contiguous in q's dtype. `bounds` are those of the
        step, for kernels whose launch is sized by them; who can read the arrays on the host needs none.
        """


class GatedMulOp(Protocol):
    def __call__(self, gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
        """`gate_up` `[M, 2 * I]`: `act(first half) * second half`, `[M, I]`, computed in fp32.

        `silu`: x * sigmoid(x). `gelu_tanh`: x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))). `swiglu_oai`
        (GPT-OSS): gate at most 7, up within ±7, gate * sigmoid(1.702 gate) * (up + 1).
        """


class StoreLatentsOp(Protocol):
    def __call__(
        self,
        q: torch.Tensor,
        latents: torch.Tensor,
        keys: torch.Tensor,
        positions: torch.Tensor,
        cos_sin: torch.Tensor,
        kv_cache: torch.Tensor,
        layer: int,
        slots: torch.Tensor,
        norm: LatentNorm | None = None,
    ) -> torch.Tensor:
        """Norms latents where `norm` is given, rotates keys and the last part of every q (i with i + R/2 of R
        dimensions), writes [latent | key] into the cache, returns q with its last part rotated.

        `q` `[M, num_heads, nope + R]`, `latents` `[M, rank]`, `keys` `[M, R]`, perhaps parts of longer rows;
        `positions`, `cos_sin` `[max_len, R]` and `slots` as in `RopeAndStoreOp`. `kv_cache` `[num_blocks, num_layers,
        1, 1, block_tokens, rank + R]`, float32 or bfloat16, perhaps other than q's dtype.
        """


class PushLatentsOp(Protocol):
    def __call__(
        self,
        q: torch.Tensor,
        latents: torch.Tensor,
        keys: torch.Tensor,
        positions: torch.Tensor,
        cos_sin: torch.Tensor,
        kv_cache: torch.Tensor,
        layer: int,
        slots: torch.Tensor,
        peers: PeerRows,
        norm: LatentNorm | None = None,
    ) -> torch.Tensor:
        """As `StoreLatentsOp`, to the bit, and [latent | key] is stored a second time where `peers` say."""


class LatentAttentionOp(Protocol):
    def __call__(
        self,
        q: torch.Tensor,
        kv_cache: torch.Tensor,
        layer: int,
        block_tables: torch.Tensor,
        query_starts: torch.Tensor,
        starts: torch.Tensor,
        prompt_ends: torch.Tensor,
        up: torch.Tensor,
        scale: float,
        *,
        bounds: StepBounds | None = None,
    ) -> torch.Tensor:
        """Causal attention of every query row over its own sequence's cached latents, its own position included.

        `q` `[M, num_heads, nope + R]`, the last part rotated; `up` `[num_heads, nope + v, rank]` in q's dtype: how a
        latent becomes a head's unrotated key and its value; the rotated key is the same for all heads. Rows at
        positions below `prompt_ends[s]` (`[S]` int64) go the un-absorbed way, those from it on the absorbed one,
        whatever else is in the step. `kv_cache` as in `StoreLatentsOp`; `block_tables`, `query_starts`, `starts` and
        what may be read of the cache, and `bounds`, as in `PagedAttentionOp`. fp32 scores and softmax; returns `[M,
        num_heads, v]` in q's dtype. Kernels of a GPU go the absorbed way with every row.
        """


class RouteOp(Protocol):
    def __call__(
        self, routing: RoutingSpec, logits: torch.Tensor, score_bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """From a router's `logits` `[M, num_experts]` float32 to the experts every token goes through.

        `score_bias` `[num_experts]` float32. Returns the chosen experts `[M, top_k]` int64, best first, the lower index
        first of two alike, and their weights `[M, top_k]` float32.
        """


class PackExpertsOp(Protocol):
    def __call__(self, experts: Iterable[ExpertMatrices], count: int) -> PackedExperts:
        """Re-lays the `count` experts of a layer, in their order, at load time. They are taken one at a time: no more
        than one need be in memory as its file has it."""


class ExpertsOp(Protocol):
    def __call__(
        self,
        x: torch.Tensor,
        experts: torch.Tensor,
        weights: torch.Tensor,
        packed: PackedExperts,
        activation: Activation,
        shared: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Every token through the gated MLPs it chose (arXiv 1701.06538).

        `x` `[M, hidden]`; `experts` `[M, top_k]` int64 and `weights` `[M, top_k]` float32 as `RouteOp` gives them;
        `shared` `[M, hidden]` in x's dtype is what an MLP beside the experts made of x. The weighted sum runs in
        float32 from a token's first choice to its last, then `shared`, and is rounded once: `[M, hidden]` in x's dtype.
        """
