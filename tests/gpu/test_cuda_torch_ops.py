"""The kernels as operators of torch: what they promise torch holds, and a traced function does what it did."""

from __future__ import annotations

import pytest
import torch
from closeness import same_bits
from paged_cases import paged_case

from engine.ops.cuda import torch_ops
from engine.ops.cuda.draw import DrawChoice, draw_columns
from engine.ops.cuda.library import Library
from engine.ops.cuda.rows import add_rms_norm
from wire.errors import SpliceError

CHECKS = ("test_schema", "test_faketensor")


@pytest.fixture
def operators(platform):
    """One library a process: whichever platform comes second in a run with both is left out."""
    try:
        torch_ops.register(platform.library)
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
    stored = (heads, heads[:, :1], heads[:, 1:2], at, table, case.cache.nan_to_num(), 0, at)
    for operator, arguments in (
        (operators.rms_norm, (drawn(3, 64), drawn(64), 1e-6)),
        (operators.add_rms_norm, (drawn(3, 64), drawn(3, 64), drawn(64), 1e-6)),
        (operators.gated_mul, (drawn(3, 64), "silu")),
        (operators.rope_and_store, stored),
        (operators.rope_store_and_push, (*stored, torch.zeros_like(at), at)),
        (operators.decode_attention, paged),
        (operators.prefill_attention, paged),
        (operators.draw, (logits, columns)),
    ):
        torch.library.opcheck(operator.default, arguments, test_utils=CHECKS)


def test_an_exported_function_gives_the_same_bits(platform, operators, drawn):
    class Fused(torch.nn.Module):
        def forward(self, x, residual, weight):
            return operators.gated_mul(operators.add_rms_norm(x, residual, weight, 1e-6), "silu")

    x, residual, weight = drawn(3, 64), drawn(3, 64), drawn(64)
    exported = torch.export.export(Fused(), (x, residual.clone(), weight)).module()
    normed, _ = add_rms_norm(platform.library, x, residual.clone(), weight, 1e-6)
    assert same_bits(exported(x, residual.clone(), weight), operators.gated_mul(normed, "silu"))


def test_a_process_has_one_library(platform, operators, tmp_path):
    torch_ops.register(platform.library)
    other = tmp_path / "libother.so"
    other.write_bytes(platform.library.path.read_bytes())
    with pytest.raises(SpliceError, match="expected one library"):
        torch_ops.register(Library(other))
