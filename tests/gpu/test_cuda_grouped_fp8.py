"""Tokens as codes in the order of experts, and what products of codes with codes are launched with.

CUTLASS runs in no emulator: that the products are the exact ones only a GPU says."""

from __future__ import annotations

from types import SimpleNamespace

import kernel_platform
import pytest
import torch
from closeness import distance, same_bits
from fp8_cases import ROUNDING, exact_groups, exact_product, stored_matrix

from engine.ops.cuda.candidates import Fp8Choice, candidates
from engine.ops.cuda.fp8 import E4M3, quantise_rows
from engine.ops.cuda.fp8_expert_steps import FEW, MANY, Fp8ExpertStacks, experts_of_codes
from engine.ops.cuda.fp8_reference import Fp8Matrix, quantise_weight
from engine.ops.cuda.grouped_fp8 import GROUPED_FP8, GroupedBlocks, gather_codes, grouped_fp8
from engine.ops.cuda.grouped_fp8_weights import Fp8Stack
from engine.ops.cuda.grouped_sm90 import TILES, GroupedSm90
from engine.ops.cuda.library import Library
from engine.ops.cuda.permutation import permute
from engine.ops.weight_matrix import ExpertMatrices
from wire.errors import SpliceError

pytestmark = pytest.mark.usefixtures("poisoned")
EXPERTS = 4


def _order(platform, tokens: int, max_rows: int | None = None):
    """Every third token's second choice is nobody's here."""
    at = torch.arange(tokens, device=platform.device)
    ids = torch.stack([at % EXPERTS, torch.where(at % 3 == 0, EXPERTS + 1, (at + 1) % EXPERTS)], dim=1)
    return permute(platform.library, ids, EXPERTS, 64, max_rows)


@pytest.mark.parametrize("max_rows", [None, 7])
@pytest.mark.parametrize(("scaling", "size"), [("rows", 16), ("rows", 208), ("blocks", 384)])
def test_every_choice_has_the_codes_of_its_token(platform, drawn, scaling, size, max_rows):
    tokens = 7
    x, order = drawn(tokens, size + 8)[:, :size], _order(platform, tokens, max_rows)
    found, alone = gather_codes(platform.library, x, order, scaling), quantise_rows(platform.library, x, scaling)
    assert len(found) == order.rows
    filled = set()
    for token in range(tokens):
        for place in order.places[token].tolist():
            if place < 0:
                continue
            filled.add(place)
            assert same_bits(found.codes[place].view(torch.uint8), alone.codes[token].view(torch.uint8))
            assert same_bits(found.scales[..., place].clone(), alone.scales[..., token].clone())
    for place in set(range(order.rows)) - filled:
        assert bool(found.scales[..., place].isnan().all()), "a row that no choice fills was written"


def test_codes_that_cannot_be_gathered_are_refused_by_name(platform, drawn):
    order = _order(platform, 5)
    with pytest.raises(SpliceError, match="scaling is 'tensor', expected 'rows' or 'blocks'"):
        gather_codes(platform.library, drawn(5, 128), order, "tensor")
    with pytest.raises(SpliceError, match="x is of shape"):
        gather_codes(platform.library, drawn(4, 128), order, "rows")
    with pytest.raises(SpliceError, match="x is of 144 columns, expected a multiple of 128"):
        gather_codes(platform.library, drawn(5, 144), order, "blocks")
    with pytest.raises(SpliceError, match="rows of 24, expected a multiple of 16"):
        gather_codes(platform.library, drawn(5, 24), order, "rows")
    with pytest.raises(SpliceError, match=r"x is of torch\.float32"):
        gather_codes(platform.library, drawn(5, 128, dtype=torch.float32), order, "rows")


class _Recorder:
    """The platform's kernels, with products of CUTLASS that say what they were launched with."""

    def __init__(self, library: Library, without: str = "") -> None:
        self._library, self.calls, self._without = library, [], without
        self.device_type = library.device_type

    def has(self, name: str) -> bool:
        return name != self._without and (name in GROUPED_FP8 or self._library.has(name))

    def function(self, name: str):
        if "workspace" not in name:
            return self._library.function(name)

        def num_bytes(count):
            self.calls.append((name, count.value))
            return 1000

        return num_bytes

    def call(self, name: str, arguments) -> None:
        if name in GROUPED_FP8[1:]:
            self.calls.append((name, arguments))
        else:
            self._library.call(name, arguments)


def _stack(n: int, k: int, scaling: str) -> Fp8Stack:
    generator = torch.Generator().manual_seed(n + k)
    each = [quantise_weight(torch.randn(n, k, generator=generator) * k**-0.5, scaling) for _ in range(EXPERTS)]
    codes = torch.stack([one.codes.view(torch.uint8) for one in each]).view(E4M3)
    return Fp8Stack(codes, torch.stack([one.scales for one in each]), scaling)


def _moved(stack: Fp8Stack, device: torch.device) -> Fp8Stack:
    return Fp8Stack(stack.codes.to(device), stack.scales.to(device), stack.scaling)


@pytest.mark.parametrize("scaling", ["rows", "blocks"])
def test_a_product_is_launched_with_all_that_its_groups_are_made_of(platform, drawn, scaling):
    order, weight = _order(platform, 6), _moved(_stack(136, 256, scaling), platform.device)
    x = gather_codes(platform.library, drawn(6, 256), order, scaling)
    recorder = _Recorder(platform.library)
    y = grouped_fp8(recorder, x, weight, order, tile=1)
    kernel = "grouped_fp8_blocks" if scaling == "blocks" else "grouped_fp8"
    (asked, count), (name, arguments) = recorder.calls
    assert (asked, count, name) == (f"{kernel}_workspace", EXPERTS, f"{kernel}_gemm")
    if scaling == "blocks":
        assert isinstance(arguments, GroupedBlocks)
        assert arguments.x_scale_stride == x.scales.stride(0) == 12
        arguments = arguments.product
    assert isinstance(arguments, GroupedSm90)
    addresses = {
        "y": y, "x": x.codes, "w": weight.codes, "x_scales": x.scales, "w_scales": weight.scales,
        "counts": order.counts, "offsets": order.offsets,
    }  # fmt: skip
    assert {part: getattr(arguments, part) for part in addresses} == {
        part: tensor.data_ptr() for part, tensor in addresses.items()
    }
    assert arguments.workspace
    assert [getattr(arguments, part) for part in ("num_experts", "n", "k", "tile")] == [EXPERTS, 136, 256, 1]
    assert (y.shape, y.dtype) == ((12, 136), torch.bfloat16)


@pytest.mark.parametrize("without", ["", *GROUPED_FP8])
@pytest.mark.parametrize("rows", ["codes", "bfloat16"])
def test_experts_meet_codes_where_all_of_their_kernels_were_built_and_are_asked_for_them(platform, rows, without):
    recorder = _Recorder(platform.library, without)
    fp8 = Fp8Choice(platform.device, rows, multiply=exact_product)
    [experts] = (one for one in candidates(recorder, None, fp8=fp8) if one.op == "experts")
    for scaling in ("rows", "blocks"):
        matrix = stored_matrix(torch.randn(128, 128), scaling)
        packed = experts.pack_experts(iter([ExpertMatrices(matrix, matrix, matrix)]), 1)
        assert packed.rows == ("bfloat16" if without else rows)
    if rows == "bfloat16" or without:
        assert experts.name == "grouped_fp8_weights+grouped_gemm"
        assert not recorder.calls
        return
    assert experts.name == "grouped_fp8+grouped_gemm"
    asked = [(name, getattr(made, "product", made).tile) for name, made in recorder.calls if name.endswith("gemm")]
    assert set(asked) == {(name, tile) for name in GROUPED_FP8[1:] for tile in range(TILES)}


def test_without_rows_nothing_is_launched(platform, drawn):
    order = permute(platform.library, torch.empty(0, 2, dtype=torch.int64, device=platform.device), EXPERTS, 64)
    for scaling in ("rows", "blocks"):
        recorder, weight = _Recorder(platform.library), _moved(_stack(16, 128, scaling), platform.device)
        x = gather_codes(platform.library, drawn(0, 128), order, scaling)
        assert grouped_fp8(recorder, x, weight, order, tile=0).shape == (0, 16)
        assert not recorder.calls


def test_operands_that_do_not_fit_are_refused_before_anything_is_launched(platform, drawn):
    order, recorder = _order(platform, 6), _Recorder(platform.library)
    of_rows, of_blocks = (_moved(_stack(16, 256, scaling), platform.device) for scaling in ("rows", "blocks"))
    x, blocks = (gather_codes(platform.library, drawn(6, 256), order, scaling) for scaling in ("rows", "blocks"))
    short = Fp8Stack(of_blocks.codes, of_blocks.scales[:, :, :1].contiguous(), "blocks")
    cut = Fp8Matrix(blocks.codes, blocks.scales[:1], "blocks")
    narrow = _moved(_stack(16, 144, "blocks"), platform.device)
    odd = SimpleNamespace(scaling="blocks", codes=blocks.codes, scales=blocks.scales.t())
    for codes, weight, tile, told in (
        (x, of_blocks, 0, "x is scaled by rows, expected scales of blocks"),
        (x, of_rows, TILES, "tile is 2, expected 0 to 1"),
        (blocks, short, 0, "weight.scales is of shape"),
        (cut, of_blocks, 0, "x.scales is of shape"),
        (odd, of_blocks, 0, "x.scales is strided"),
        (blocks, narrow, 0, "weight is of rows of 144 elements, expected a multiple of 128"),
    ):
        with pytest.raises(SpliceError, match=told):
            grouped_fp8(recorder, codes, weight, order, tile=tile)
    assert not [call for call in recorder.calls if call[0].endswith("gemm")]


@pytest.fixture
def hopper() -> Library:
    missing = kernel_platform.why_no_gpu()
    if missing:
        pytest.skip(missing)
    found = Library()
    if not all(map(found.has, GROUPED_FP8)):
        pytest.skip("grouped_fp8_blocks_sm90 was not built for this GPU")
    return found


@pytest.mark.gpu
@pytest.mark.parametrize(("tokens", "n", "k"), [(1, 128, 128), (9, 200, 256), (300, 1536, 2048)])
def test_gpu_products_of_block_scaled_codes_are_the_exact_ones_from_either_tile(hopper, tokens, n, k):
    platform = SimpleNamespace(library=hopper, device=torch.device("cuda"))
    order, weight = _order(platform, tokens), _stack(n, k, "blocks")
    x = torch.randn(tokens, k, generator=torch.Generator().manual_seed(tokens)).bfloat16().cuda()
    codes = gather_codes(hopper, x, order, "blocks")
    few, many = (grouped_fp8(hopper, codes, _moved(weight, x.device), order, tile=tile).cpu() for tile in range(TILES))
    filled = int(order.counts.sum())
    cpu = Fp8Matrix(codes.codes.cpu(), codes.scales.cpu(), "blocks")
    there = SimpleNamespace(rows=order.rows, counts=order.counts.cpu(), offsets=order.offsets.cpu())
    exact = exact_groups(hopper, cpu, weight, there, tile=0)[:filled]
    assert distance(few[:filled], exact.double()) < 2 * ROUNDING
    assert same_bits(few[:filled], many[:filled])


@pytest.mark.gpu
@pytest.mark.parametrize("scaling", ["rows", "blocks"])
def test_gpu_a_tokens_experts_are_the_exact_ones_in_any_company(hopper, scaling):
    """Few tokens take tile 0, all of them tile 1."""
    hidden, wide, tokens = 512, 256, 300
    gate_up, down = (
        _moved(_stack(n, k, scaling), torch.device("cuda")) for n, k in ((2 * wide, hidden), (hidden, wide))
    )
    packed = Fp8ExpertStacks(gate_up, down, rows="codes")
    generator = torch.Generator().manual_seed(3)
    x, weights = torch.randn(tokens, hidden, generator=generator), torch.rand(tokens, 2, generator=generator)
    x, weights = x.bfloat16().cuda(), weights.cuda()
    chosen = torch.stack([torch.randperm(EXPERTS, generator=generator)[:2] for _ in range(tokens)]).cuda()
    together = experts_of_codes(hopper, x, chosen, weights, packed, "silu", tile=MANY)
    exact = experts_of_codes(hopper, x, chosen, weights, packed, "silu", tile=MANY, multiply=exact_groups)
    assert distance(together, exact) < 0.01
    for own in (slice(0, 1), slice(17, 57), slice(299, 300)):
        part = experts_of_codes(hopper, x[own], chosen[own], weights[own], packed, "silu", tile=FEW)
        assert same_bits(part, together[own]), own
