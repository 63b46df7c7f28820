"""The kernels as operators of torch: what they promise torch holds, and a traced function does what it did."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from closeness import same_bits
from latent_cases import latent_case
from paged_cases import paged_case
from quantised_cases import matrix_of

from engine.ops.cuda.block_products import pack_weight
from engine.ops.cuda.draw import DrawChoice, draw_columns
from engine.ops.cuda.fp8_reference import quantise_weight
from engine.ops.cuda.latent import LatentKernel
from engine.ops.cuda.library import Library
from engine.ops.cuda.rows import add_rms_norm
from engine.ops.cuda.torch_operators.register import register
from wire.errors import SpliceError

CHECKS = ("test_schema", "test_faketensor")


@pytest.fixture
def operators(platform):
    """One library a process: whichever platform comes second in a run with both is left out."""
    try:
        register(platform.library)
    except SpliceError as error:
        pytest.skip(f"the other platform's operators are registered: {error}")
    return torch.ops.splice


def test_operators_keep_their_schemas_and_fakes(platform, operators, drawn):
    case = paged_case([(30, 2), (4, 1)], (2, 1), 64, platform.device)
    paged = (case.q, case.cache, 1, case.rows.block_tables, case.rows.query_starts, case.rows.starts, 32, 2, 0.125)
    heads = drawn(3, 4, 64)
    at = torch.arange(3, device=platform.device)
    table = torch.rand(8, 64, generator=torch.Generator().manual_seed(3)).to(platform.device)
    logits = drawn(2, 100, dtype=torch.float32)
    columns = draw_columns([DrawChoice(1.0, 5, 1, top_k=3)] * 2).to(platform.device)
    packed = pack_weight(matrix_of(24, 64, "q4_1"), platform.device)
    weight = (packed.data, packed.kind, packed.n, packed.k)
    # What fills up the scales of rows is never written, so their operator is compared by what products make of them.
    quantised = [part.nan_to_num() for part in operators.quantise_rows(drawn(3, 64))]
    ids, shares = torch.tensor([[0, 2], [1, 0], [2, 1]], device=platform.device), drawn(3, 2, dtype=torch.float32)
    stored = (heads, heads[:, :1], heads[:, 1:2], at, table, case.cache.nan_to_num(), 0, at)
    for operator, arguments in (
        (operators.rms_norm, (drawn(3, 64), drawn(64), 1e-6)),
        (operators.add_rms_norm, (drawn(3, 64), drawn(3, 64), drawn(64), 1e-6)),
        (operators.gated_mul, (drawn(3, 64), "silu")),
        (operators.rope_and_store, stored),
        (operators.rope_store_and_push, (*stored, torch.zeros_like(at), at)),
        (operators.decode_attention, paged),
        (operators.prefill_attention, paged),
        *([(operators.prefill_attention_sm90, paged)] if platform.has_warpgroups("prefill_attention_sm90") else []),
        (operators.draw, (logits, columns)),
        (operators.quantise_rows, (drawn(3, 128),)),
        (operators.block_gemm, (*quantised, *weight, drawn(24))),
        (operators.block_gemm, (*quantised, *weight, None, 1, True)),
        (operators.w4a16_gemm, (drawn(3, 64), *weight)),
        (operators.block_rows, (*weight, at)),
        (operators.route, (logits, None, 4, "softmax", True)),
        (operators.experts, (drawn(3, 64), ids, shares, drawn(3, 48, 64), drawn(3, 64, 24), "silu")),
        *_latent_calls(operators, platform, drawn),
    ):
        torch.library.opcheck(operator.default, arguments, test_utils=CHECKS)


@pytest.mark.parametrize("scaling", ["tensor", "rows", "blocks"])
def test_operators_of_codes_keep_their_schemas_and_fakes(platform, operators, drawn, scaling):
    x, weight = drawn(3, 128), quantise_weight(drawn(16, 128).cpu(), scaling)
    scale = torch.ones(1, device=platform.device) if scaling == "tensor" else None
    held = (weight.codes.to(platform.device), weight.scales.to(platform.device), scaling)
    for operator, arguments in (
        (operators.quantise_fp8, (x, scaling, scale)),
        (operators.rms_norm_fp8, (x, drawn(128), 1e-6, scaling, scale)),
        (operators.add_rms_norm_fp8, (x, drawn(3, 128), drawn(128), 1e-6, scaling, scale)),
        (operators.gated_mul_fp8, (drawn(3, 256), "silu", scaling, scale)),
    ):
        torch.library.opcheck(operator.default, arguments, test_utils=CHECKS)
    if scaling != "tensor":
        gate_up, down = (_stack(drawn(2, n, k), scaling, parts) for n, k, parts in ((96, 128, 2), (128, 48, 1)))
        ids, shares = torch.tensor([[0, 1]] * 3, device=platform.device), drawn(3, 2, dtype=torch.float32)
        mixture = (x, ids, shares, *gate_up, *down, scaling, "silu")
        torch.library.opcheck(operators.experts_fp8.default, mixture, test_utils="test_faketensor")
        if scaling == "rows" and not platform.library.has("grouped_fp8_gemm"):
            with pytest.raises(SpliceError, match="built without grouped_fp8"):
                operators.experts_fp8(*mixture, rows="codes")
    # Of the schema torch checks that arguments are as they were, with a product that it has not for codes.
    arguments = (x, *held, None, 0)
    torch.library.opcheck(operators.gemm_fp8_weights.default, arguments, test_utils="test_faketensor")


def _stack(weights: torch.Tensor, scaling: str, parts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of several matrices, of as many parts each."""
    coded = [[quantise_weight(part.cpu(), scaling) for part in each.chunk(parts)] for each in weights]
    codes = torch.stack([torch.cat([part.codes.view(torch.uint8) for part in each]) for each in coded])
    scales = torch.stack([torch.cat([part.scales for part in each]) for each in coded])
    return codes.view(torch.float8_e4m3fn).to(weights.device), scales.to(weights.device)


def test_a_product_of_codes_has_its_shape_where_nothing_can_compute_it(platform, operators):
    with torch.device("meta"):
        x, weight = (torch.empty(rows, 128, dtype=torch.float8_e4m3fn) for rows in (5, 24))
        scales = torch.empty(5), torch.empty(24)
    found = operators.gemm_fp8(x, scales[0], "rows", weight, scales[1], "rows", None, 1)
    assert (found.shape, found.dtype) == ((5, 24), torch.bfloat16)


def _latent_calls(operators, platform, drawn):
    case = latent_case([(30, 2), (4, 1)], 2, (256, 32), platform.device)
    rows, table = case.rows, torch.ones(8, 32, device=platform.device)
    q, down, up = drawn(3, 2, 96), drawn(3, 288), drawn(2, 128, 256)
    at = torch.arange(3, device=platform.device)
    paged = (case.absorbed, case.rotated, case.cache, 1, rows.block_tables, rows.query_starts, rows.starts, 32, 2, 0.1)
    store = (q, down[:, :256], down[:, 256:], at, table, case.cache.nan_to_num(), 0, at, drawn(256), 1e-6)
    kernels = [kernel for kernel in get_args(LatentKernel) if "sm90" not in kernel or platform.has_warpgroups(kernel)]
    return (
        (operators.store_latents, store),
        (operators.absorb, (q[:, :, :64], up)),
        *((getattr(operators, kernel), paged) for kernel in kernels),
        (operators.expand, (case.absorbed, up, 64)),
    )


def test_an_exported_function_gives_the_same_bits(platform, operators, drawn):
    class Fused(torch.nn.Module):
        def forward(self, x, residual, weight):
            return operators.gated_mul(operators.add_rms_norm(x, residual, weight, 1e-6), "silu")

    x, residual, weight = drawn(3, 64), drawn(3, 64), drawn(64)
    exported = torch.export.export(Fused(), (x, residual.clone(), weight)).module()
    normed, _ = add_rms_norm(platform.library, x, residual.clone(), weight, 1e-6)
    assert same_bits(exported(x, residual.clone(), weight), operators.gated_mul(normed, "silu"))


def test_a_process_has_one_library(platform, operators, tmp_path):
    register(platform.library)
    other = tmp_path / "libother.so"
    other.write_bytes(platform.library.path.read_bytes())
    with pytest.raises(SpliceError, match="expected one library"):
        register(Library(other))
