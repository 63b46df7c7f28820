"""e4m3 as `csrc/cuda/e4m3.h` converts it, against torch.float8_e4m3fn: compiled here with the C++ compiler."""

from __future__ import annotations

import ctypes
import subprocess

import pytest
import torch
from kernel_platform import ROOT, SOURCES

E4M3 = torch.float8_e4m3fn
EVERY_CODE = torch.arange(256, dtype=torch.uint8)


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    library = tmp_path_factory.mktemp("e4m3") / "libe4m3.so"
    source = ROOT / "tests" / "gpu" / "e4m3_probe.cpp"
    flags = ("-std=c++20", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}")
    done = subprocess.run(["g++", *flags, str(source), "-o", str(library)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


def _converted(function, given: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    count = ctypes.c_int64(given.numel())
    function(ctypes.c_void_p(given.data_ptr()), ctypes.c_void_p(out.data_ptr()), count)
    return out


def _to_codes(probe, values: torch.Tensor) -> torch.Tensor:
    return _converted(probe.to_codes, values.contiguous(), torch.empty(values.numel(), dtype=torch.uint8))


def _agree(probe, values: torch.Tensor) -> None:
    held = values.clamp(-448.0, 448.0).to(E4M3).view(torch.uint8)
    found = _to_codes(probe, values)
    nan = values.isnan()
    assert bool((found[nan] == 0x7F).all())
    assert torch.equal(found[~nan], held[~nan]), values[~nan][found[~nan] != held[~nan]][:5]


def test_every_code_has_the_value_torch_gives_it(probe):
    found = _converted(probe.from_codes, EVERY_CODE, torch.empty(256))
    exact = EVERY_CODE.view(E4M3).float()
    assert torch.equal(found.isnan(), exact.isnan())
    numbers = ~exact.isnan()
    assert torch.equal(found[numbers].view(torch.int32), exact[numbers].view(torch.int32))


def test_every_value_of_a_code_gives_that_code_back(probe):
    values = EVERY_CODE.view(E4M3).float()
    numbers = ~values.isnan()
    assert torch.equal(_to_codes(probe, values)[numbers], EVERY_CODE[numbers])


def test_what_lies_at_half_way_and_one_float_beside_it_rounds_as_torch_rounds(probe):
    values = EVERY_CODE[:0x7F].view(E4M3).float()
    halves = (values[1:] + values[:-1]) / 2
    near = torch.cat([torch.nextafter(halves, torch.tensor(side)) for side in (-torch.inf, torch.inf)] + [halves])
    _agree(probe, torch.cat([near, -near]))


def test_floats_of_every_exponent_and_kind_round_as_torch_rounds(probe):
    generator = torch.Generator().manual_seed(8)
    every_bit = torch.randint(-(2**31), 2**31, (500_000,), generator=generator, dtype=torch.int64).int()
    in_range = torch.randn(500_000, generator=generator) * torch.exp2(
        torch.randint(-12, 9, (500_000,), generator=generator)
    )
    edges = torch.tensor([0.0, -0.0, 1e-45, 448.0, 463.9, 464.0, 464.1, 480.0, 3e38, torch.inf, -torch.inf, torch.nan])
    for values in (every_bit.view(torch.float32), in_range, edges):
        _agree(probe, values)


def test_every_pair_of_neighbouring_codes_becomes_bfloat16_exactly(probe):
    low, high = torch.meshgrid(EVERY_CODE, EVERY_CODE, indexing="ij")
    for order in ((low, high), (high, low)):
        codes = torch.stack([*order, *order], -1).reshape(-1).contiguous()
        found = _converted(probe.to_bf16, codes.view(torch.int32), torch.empty(codes.numel() // 2, dtype=torch.int32))
        exact = codes.view(E4M3).to(torch.bfloat16)
        values = found.view(torch.bfloat16)
        assert torch.equal(values.isnan(), exact.isnan())
        numbers = ~exact.isnan()
        assert torch.equal(values[numbers].view(torch.int16), exact[numbers].view(torch.int16))
