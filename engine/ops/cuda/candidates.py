"""The CUDA kernels as candidates beside the torch reference."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

import torch

from engine.ops import reference
from engine.ops.candidate import Candidate
from engine.ops.cuda import rows
from engine.ops.cuda.attention import DECODE_HEAD_DIMS, PREFILL_HEAD_DIMS, PagedRows, Scores
from engine.ops.cuda.attention import decode_attention as attend_few
from engine.ops.cuda.attention_kernels import PrefillChoice, prefill_choice
from engine.ops.cuda.block_pack import FILE_KINDS
from engine.ops.cuda.block_products import BlockProducts
from engine.ops.cuda.cache import rope_and_store
from engine.ops.cuda.expert_kernels import CudaExperts
from engine.ops.cuda.experts import pack_experts
from engine.ops.cuda.fp8 import gemm_fp8
from engine.ops.cuda.fp8_experts import Fp8Experts
from engine.ops.cuda.fp8_products import FP8_KINDS, Fp8Products, Fp8Rows, Fp8Tactics, ProductOfCodes
from engine.ops.cuda.gemm import GemmKernel, gemm
from engine.ops.cuda.grouped_fp8 import GROUPED_FP8, ProductOfGroups, grouped_fp8
from engine.ops.cuda.latent import store_latents
from engine.ops.cuda.latent_kernels import latent_kernels
from engine.ops.cuda.latent_ops import LatentOps, latent_obstacle
from engine.ops.cuda.library import Library
from engine.ops.cuda.mixed_products import MixedProducts
from engine.ops.cuda.push import rope_store_and_push, store_latents_and_push
from engine.ops.cuda.route import MAX_CHOICES, MAX_EXPERTS, MAX_GROUPS, route
from engine.ops.features import Feature
from engine.spec import AttentionSpec, ModelSpec, MoeSpec
from engine.steps.step_plan import StepBounds

_log = logging.getLogger(__name__)
_RANK = 10
_FRAGMENT_ROWS = 16
"""Rows of heads a block of the decode kernel takes: with more of one sequence the other kernel reads its keys once."""
_FEW_ROWS, _FEW, _MANY = 64, 0, 1
"""Up to so many rows a product takes the tile made for few; tiles by their numbers."""
_MULTIPLE = 8
_HEAD_DIMS = DECODE_HEAD_DIMS & PREFILL_HEAD_DIMS


def obstacle(spec: ModelSpec) -> str | None:
    """Why the kernels do not compute this model, in words; None when they do."""
    for layer in dict.fromkeys(spec.layers):
        if not isinstance(layer.attention, AttentionSpec):
            reason = latent_obstacle(layer.attention)
            if reason is not None:
                return reason
            continue
        if layer.attention.head_dim not in _HEAD_DIMS:
            dims = " or ".join(map(str, sorted(_HEAD_DIMS)))
            return f"heads have {layer.attention.head_dim} dimensions, and attention kernels are made for {dims}"
        if isinstance(layer.mlp, MoeSpec):
            reason = _mixture_obstacle(spec.hidden_size, layer.mlp)
            if reason is not None:
                return reason
    return None


def _mixture_obstacle(hidden_size: int, mixture: MoeSpec) -> str | None:
    routing = mixture.routing
    most = {"num_experts": MAX_EXPERTS, "top_k": MAX_CHOICES, "num_groups": MAX_GROUPS}
    for name, bound in most.items():
        if getattr(routing, name) > bound:
            return f"{name} is {getattr(routing, name)}, and routing takes {bound} at most"
    sizes = {
        "num_experts": routing.num_experts,
        "hidden_size": hidden_size,
        "the experts' intermediate_size": mixture.expert.intermediate_size,
    }
    for name, size in sizes.items():
        if size % _MULTIPLE:
            return f"{name} is {size}, and products are of multiples of {_MULTIPLE}"
    return None


class CudaOps:
    """The operations of `engine.ops.signatures`, bound to one library."""

    def __init__(self, library: Library, product: GemmKernel | None, prefill: PrefillChoice | None = None) -> None:
        """`product`: None leaves matrix products to torch."""
        self._library = library
        self._product = product
        self._prefill = prefill or PrefillChoice()
        self._tiles_agree = product is not None and _tiles_agree(library, product)

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """See `signatures.LinearOp`."""
        assert self._product is not None  # noqa: S101 - offered with one only
        few = self._tiles_agree and x.shape[0] <= _FEW_ROWS
        return gemm(self._library, x, weight, bias, kernel=self._product, tile=_FEW if few else _MANY)

    def lm_head(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """See `signatures.LmHeadOp`. Always the tile for few rows: logits are wanted of few."""
        assert self._product is not None  # noqa: S101 - offered with one only
        return gemm(self._library, x, weight, kernel=self._product, tile=_FEW, out_dtype=torch.float32)

    def paged_attention(
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
        """See `signatures.PagedAttentionOp`; needs `bounds`. Kernels give the same bits (but see `PrefillChoice`), so
        who takes which sequence is a matter of speed: those that decode are split over their keys, prompts over their
        rows."""
        if bounds is None:
            raise ValueError("paged_attention: bounds are None, expected those of the step: a launch is sized by them")
        scores = Scores(scale, window, softcap, sinks)
        attend = partial(self._attend, kv_cache=kv_cache, layer=layer, scores=scores)
        singles, context = bounds.leading_singles, bounds.max_context
        if singles in (0, len(starts)):
            return attend(q, PagedRows(block_tables, query_starts, starts, context, bounds.max_query))
        few = PagedRows(block_tables[:singles], query_starts[: singles + 1], starts[:singles], context, 1)
        rest = query_starts[singles:] - singles
        many = PagedRows(block_tables[singles:], rest, starts[singles:], context, bounds.max_query)
        return torch.cat((attend(q[:singles], few), attend(q[singles:], many)))

    def _attend(
        self, q: torch.Tensor, paged: PagedRows, *, kv_cache: torch.Tensor, layer: int, scores: Scores
    ) -> torch.Tensor:
        rows_of_heads = paged.max_query * (q.shape[1] // kv_cache.shape[3])
        if paged.max_query == 1 or rows_of_heads <= _FRAGMENT_ROWS:
            return attend_few(self._library, q, kv_cache, layer, paged, scores)
        return self._prefill.of(q.shape[2])(self._library, q, kv_cache, layer, paged, scores)


@dataclass(frozen=True, slots=True)
class Fp8Choice:
    """How products take matrices in FP8."""

    device: torch.device
    """The library's."""
    rows: Fp8Rows
    quantises: bool = False
    """Whether those in bfloat16 become FP8."""
    multiply: ProductOfCodes = gemm_fp8
    """Two matrices of codes."""
    tactics: Fp8Tactics | None = None
    """Who chooses among kernels where they are measured."""
    multiply_groups: ProductOfGroups | None = None
    """The same of each expert; None: as the library can."""


def candidates(
    library: Library,
    product: GemmKernel | None,
    quantised_on: torch.device | None = None,
    fp8: Fp8Choice | None = None,
    *,
    keeps_bits: bool = True,
) -> tuple[Candidate, ...]:
    """On this library; products by `product`, or by torch where it is None. With `quantised_on`, the library's device,
    products take matrices as GGUF files quantise them too, with int8 activations and the bits of the CPU's; with `fp8`
    those in FP8. `keeps_bits`: whether a row's must be the same in any step, the promise of the exact mode."""
    is_hopper = product == "gemm_sm90"
    prefill = prefill_choice(library, is_hopper=is_hopper, keeps_bits=keeps_bits)
    ops = CudaOps(library, product, prefill)
    latents = LatentOps(library, latent_kernels(library, is_hopper=is_hopper))
    experts = CudaExperts(library, is_hopper=is_hopper)
    found = [
        Candidate("rms_norm", "cuda", partial(rows.rms_norm, library), _supports, _RANK),
        Candidate("add_rms_norm", "cuda", partial(rows.add_rms_norm, library), _supports, _RANK),
        Candidate(
            "gated_mul",
            "cuda",
            partial(rows.gated_mul, library),
            _supports,
            _RANK,
            frozenset({"gelu_tanh", "swiglu_oai"}),
        ),
        Candidate(
            "rope_and_store",
            "cuda",
            partial(rope_and_store, library),
            _supports,
            _RANK,
            frozenset({"partial_rotary"}),
            push=partial(rope_store_and_push, library),
        ),
        Candidate(
            "paged_attention",
            prefill.name,
            ops.paged_attention,
            _supports,
            _RANK,
            frozenset({"window", "softcap", "sinks"}),
        ),
        Candidate("route", "cuda", partial(route, library), _supports, _RANK),
        _experts(library, experts, fp8),
        Candidate(
            "store_latents",
            "cuda",
            partial(store_latents, library),
            _supports,
            _RANK,
            push=partial(store_latents_and_push, library),
        ),
        Candidate("latent_attention", latents.name, latents.latent_attention, _supports, _RANK),
    ]
    dense = (reference.linear, reference.lm_head) if product is None else (ops.linear, ops.lm_head)
    if fp8 is not None:
        mine = Fp8Products(
            library, fp8.device, dense[0], rows=fp8.rows, quantises=fp8.quantises, multiply=fp8.multiply,
            tactics=fp8.tactics,
        )  # fmt: skip
        name = f"{mine.name}+{product or 'torch'}"
        found.append(
            Candidate("linear", name, mine.linear, _supports, _RANK, pack=mine.pack, kinds=FP8_KINDS, fused=mine)
        )
        if product is not None:
            found.append(Candidate("lm_head", product, ops.lm_head, _supports, _RANK))
    elif quantised_on is not None:
        mixed, name = MixedProducts(BlockProducts(library, quantised_on), *dense), f"cuda_int8+{product or 'torch'}"
        found += [
            Candidate("linear", name, mixed.linear, _supports, _RANK, pack=mixed.pack, kinds=FILE_KINDS),
            Candidate(
                "lm_head", name, mixed.lm_head, _supports, _RANK, pack=mixed.pack, rows=mixed.rows, kinds=FILE_KINDS
            ),
        ]
    elif product is not None:
        found.append(Candidate("linear", product, ops.linear, _supports, _RANK))
        found.append(Candidate("lm_head", product, ops.lm_head, _supports, _RANK))
    return tuple(found)


def _experts(library: Library, plain: CudaExperts, fp8: Fp8Choice | None) -> Candidate:
    gates: frozenset[Feature] = frozenset({"gelu_tanh", "swiglu_oai"})
    if fp8 is None:
        return Candidate("experts", plain.name, plain, _supports, _RANK, gates, pack_experts=pack_experts)
    multiply = fp8.multiply_groups
    if multiply is None and all(map(library.has, GROUPED_FP8)):
        multiply = grouped_fp8
    made = Fp8Experts(
        library, fp8.device, plain, quantises=fp8.quantises, multiply=multiply if fp8.rows == "codes" else None
    )
    return Candidate("experts", made.name, made, _supports, _RANK, gates, pack_experts=made.pack, kinds=FP8_KINDS)


def best_product(library: Library, capability: tuple[int, int]) -> GemmKernel | None:
    """The matrix product for a GPU of this compute capability, of those that were built."""
    names: tuple[GemmKernel, ...] = ("gemm_sm90", "gemm_sm80") if capability[0] == 9 else ("gemm_sm80",)
    return next((name for name in names if library.has(name)), None)


def _supports(dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16


def _tiles_agree(library: Library, product: GemmKernel) -> bool:
    """Whether this GPU gives the same bits for a row through either tile; asked of it rather than assumed, because
    tiles differ in which operand the matrix units take from where."""
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(size, 1024, generator=generator).bfloat16() for size in (_FEW_ROWS, 256))
    x, weight = x.to(library.device_type), weight.to(library.device_type)
    few, many = (gemm(library, x, weight, kernel=product, tile=tile) for tile in (_FEW, _MANY))
    agree = torch.equal(few, many)
    if not agree:
        _log.warning("%s: tiles round differently here; all rows take the tile for many, which is slower", product)
    return agree
