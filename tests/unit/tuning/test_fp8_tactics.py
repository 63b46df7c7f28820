"""FP8 products under the tuner, with scripted times: which kernel or tile is taken, and what keeps one out.

Our products of codes stand on matrix units that are not here; what takes their place computes what they promise."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from scripted_timer import ScriptedTimer

from engine.numerics import gpu_numerics_id
from engine.ops.cuda.fp8_reference import Fp8Matrix, activation_values, quantise_rows, quantise_weight, weight_values
from engine.tuning.fp8_operations import TunedFp8
from engine.tuning.fp8_products import fp8_shape, fp8_tunables, rows_by_torch
from engine.tuning.shapes import Shape
from engine.tuning.table import TacticTable
from engine.tuning.tuner import Tuner

CPU = torch.device("cpu")
BUCKETS = (1, 4, 128)
LIBRARY = SimpleNamespace(has=lambda name: name != "gemm_fp8_weights", device_type="cpu")
CODES, BLOCKS = Shape("fp8_codes", 24, 144), Shape("fp8_block_codes", 136, 256)


class _Product:
    """The exact product by whatever tile, a row at a time; tiles of `off` are off by so much."""

    def __init__(self, off: dict[int, float] | None = None) -> None:
        self.off = off or {}

    def __call__(self, library, x, weight, bias, *, tile):
        del library
        rows, matrix = activation_values(x), weight_values(weight).t()
        y = torch.cat([rows[row : row + 1] @ matrix for row in range(len(x))])
        return (y * (1 + self.off.get(tile, 0.0)) + (0 if bias is None else bias)).bfloat16()


def _tuned(shape, mode, seconds, product=None):
    """What was found, and the runners there were. `seconds(name, rows)`."""
    tunables = fp8_tunables(LIBRARY, CPU, product or _Product())
    names = {runner.run: runner.name for tunable in tunables for runner in tunable.runners}
    timer = ScriptedTimer(lambda run, rows: seconds(names[run], rows))
    entry = Tuner(tunables, timer, buckets=BUCKETS, rotated_bytes=1).tune([shape], mode).entries[0]
    return entry, tunables


def _tile_of(kernel: str, few: float, many: float):
    """By rows the better of tiles 0 and 1; the others `many`."""

    def seconds(name, rows):
        tile_0, tile_1 = (few if rows <= 64 else 5 * many), (many if rows > 64 else 5 * few)
        return {kernel: min(tile_0, tile_1), f"{kernel}-0": tile_0}.get(name, tile_1)

    return seconds


def test_every_tile_is_tried_and_those_of_one_arithmetic_also_as_one_that_rows_decide_on():
    found = {tunable.op: [runner.name for runner in tunable.runners] for tunable in fp8_tunables(LIBRARY, CPU)}
    assert found == {
        "fp8_codes": ["gemm_fp8_sm90", "gemm_fp8_sm90-fast", *(f"gemm_fp8_sm90-{tile}" for tile in range(4))],
        "fp8_block_codes": ["gemm_fp8_blocks_sm90", "gemm_fp8_blocks_sm90-0", "gemm_fp8_blocks_sm90-1"],
    }


def test_on_a_gpu_torch_is_tried_too_and_promises_nothing():
    tunables = fp8_tunables(LIBRARY, torch.device("cuda"))
    by_torch = {
        tunable.op: [(runner.name.removeprefix(f"torch-{torch.__version__}"), runner.keeps_rows)
                     for runner in tunable.runners if runner.name.startswith("torch")]
        for tunable in tunables
    }  # fmt: skip
    assert by_torch == {"fp8_codes": [("", False), ("-fast", False)], "fp8_block_codes": [("", False)]}


@pytest.mark.parametrize("shape", [CODES, BLOCKS])
def test_where_tiles_agree_rows_decide_between_them_in_deterministic_mode(shape):
    kernel = "gemm_fp8_sm90" if shape is CODES else "gemm_fp8_blocks_sm90"
    entry, _ = _tuned(shape, "deterministic", _tile_of(kernel, 1e-6, 1e-5))
    assert entry.chosen == ((0, kernel),)
    assert not entry.skipped


@pytest.mark.parametrize("shape", [CODES, BLOCKS])
def test_where_tiles_disagree_one_tile_computes_all_rows(shape):
    kernel = "gemm_fp8_sm90" if shape is CODES else "gemm_fp8_blocks_sm90"
    entry, _ = _tuned(shape, "deterministic", _tile_of(kernel, 1e-6, 1e-5), _Product({0: 4e-3}))
    assert {trial.tactic for trial in entry.skipped} == {kernel}
    assert "other bits" in entry.skipped[0].skipped
    [(bucket, name)] = entry.chosen
    assert (bucket, name) in ((0, f"{kernel}-0"), (0, f"{kernel}-1"))


def test_sums_that_stay_in_the_matrix_units_are_one_tactic_for_all_rows_and_part_of_the_numerics_id():
    product = _Product({2: 0.02, 3: 0.02})
    fast, tunables = _tuned(CODES, "deterministic", lambda name, _: 1e-6 if name.endswith("fast") else 1e-5, product)
    assert fast.chosen == ((0, "gemm_fp8_sm90-fast"),)
    assert not fast.skipped
    exact, _ = _tuned(CODES, "deterministic", _tile_of("gemm_fp8_sm90", 1e-6, 1e-5), product)
    ids = []
    for entry in (fast, exact):
        table = TacticTable(tunables, "deterministic", [entry])
        assert len({table.runner(CODES, rows).name for rows in (1, 7, 5000)}) == 1
        ids.append(gpu_numerics_id((9, 0), {"linear": "cuda_fp8"}, table.identity([CODES])))
    assert ids[0] != ids[1]


def test_only_tiles_that_sum_there_may_be_as_inexact_as_that():
    entry, _ = _tuned(CODES, "deterministic", lambda *_: 1e-6, _Product(dict.fromkeys(range(4), 0.02)))
    assert {trial.tactic for trial in entry.skipped} == {"gemm_fp8_sm90", "gemm_fp8_sm90-0", "gemm_fp8_sm90-1"}
    assert all("from exact, allowed are 0.008" in trial.skipped for trial in entry.skipped)
    assert entry.chosen == ((0, "gemm_fp8_sm90-fast"),)
    worse, _ = _tuned(CODES, "deterministic", lambda *_: 1e-6, _Product(dict.fromkeys(range(4), 0.05)))
    assert worse.chosen == ()


def test_fast_mode_takes_another_arithmetic_for_each_bucket():
    best = {1: "gemm_fp8_sm90-0", 4: "gemm_fp8_sm90", 128: "gemm_fp8_sm90-2"}
    entry, _ = _tuned(CODES, "fast", lambda name, rows: 1e-6 if name == best[rows] else 1e-5)
    assert dict(entry.chosen) == best


def test_sizes_that_no_kernel_takes_are_refused():
    tunables = {tunable.op: tunable for tunable in fp8_tunables(LIBRARY, torch.device("cuda"))}

    def able(shape: Shape, rows: int) -> set[str]:
        return {
            runner.name.partition("-")[0]
            for runner in tunables[shape.op].runners
            if runner.refusal(shape, rows) is None
        }

    assert able(Shape("fp8_codes", 24, 32), 3) == {"gemm_fp8_sm90"}
    assert able(Shape("fp8_codes", 32, 32), 3) == {"gemm_fp8_sm90", "torch"}
    assert able(Shape("fp8_codes", 12, 32), 3) == able(Shape("fp8_codes", 32, 40), 3) == set()
    assert able(Shape("fp8_block_codes", 32, 1024), 3) == {"gemm_fp8_blocks_sm90"}
    assert able(Shape("fp8_block_codes", 32, 1024), 4) == {"gemm_fp8_blocks_sm90", "torch"}
    assert able(Shape("fp8_block_codes", 32, 128), 4) == {"gemm_fp8_blocks_sm90"}
    assert able(Shape("fp8_block_codes", 32, 144), 4) == set()


@pytest.mark.parametrize("shape", [CODES, BLOCKS])
def test_rows_from_any_place_are_those_rows_and_lie_as_kernels_want_them(shape):
    tunable = next(one for one in fp8_tunables(LIBRARY, CPU) if one.op == shape.op)
    inputs = tunable.make(shape, 12, 1)
    part = tunable.rows_of(inputs, slice(7, 12))
    assert torch.equal(activation_values(part[0]), activation_values(inputs[0])[7:])
    [exact] = tunable.exact(part)
    assert torch.equal(exact, activation_values(part[0]) @ weight_values(part[1]).t())
    if shape is BLOCKS:
        assert part[0].scales.data_ptr() % 16 == 0
        assert part[0].scales.stride(0) == 8


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("of_x", ["rows", "tensor"])
def test_torchs_product_of_codes_is_the_one_of_their_values(of_x, has_bias):
    generator = torch.Generator().manual_seed(1)
    x = quantise_rows(torch.randn(5, 64, generator=generator), of_x, torch.tensor([0.02]) if of_x == "tensor" else None)
    weight = quantise_weight(torch.randn(32, 64, generator=generator) / 8, "rows")
    bias = torch.randn(32, generator=generator).bfloat16() if has_bias else None
    exact = activation_values(x) @ weight_values(weight).t() + (0 if bias is None else bias.double())
    for is_fast in (False, True):
        found = rows_by_torch(is_fast, x, weight, bias)
        assert float((found.double() - exact).norm() / exact.norm()) < 4e-3


def test_a_product_asks_for_the_runner_of_what_it_is_given():
    asked: list[tuple[Shape, int]] = []
    noted: list[Shape] = []

    def ask(shape: Shape, rows: int):
        asked.append((shape, rows))
        return SimpleNamespace(run=lambda x, weight, bias: (x, weight, bias))

    tuned = TunedFp8(ask, noted.append)
    wide = torch.randn(3, 256)
    for scaling in ("rows", "blocks"):
        weight = quantise_weight(torch.randn(16, 256), scaling)
        codes = quantise_rows(wide, scaling)
        for rows, x in (("codes", codes), ("bfloat16", wide.bfloat16())):
            tuned.note(weight, rows)
            assert tuned.product(x, weight, None) == (x, weight, None)
    one = Fp8Matrix(codes.codes, torch.ones(1), "tensor")
    tuned.product(one, quantise_weight(torch.randn(16, 256), "rows"), None)
    ops = ["fp8_codes", "fp8_weights", "fp8_block_codes", "fp8_block_weights"]
    assert noted == [Shape(op, 16, 256) for op in ops]
    assert asked == [(Shape(op, 16, 256), 3) for op in [*ops, "fp8_codes"]]
    assert fp8_shape(weight, "codes") == Shape("fp8_block_codes", 16, 256)
