"""Products of warpgroups in the emulator: right where a kernel is, and found out where it is not."""

from __future__ import annotations

import subprocess

import pytest
from kernel_platform import ROOT, SOURCES


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    program = tmp_path_factory.mktemp("warpgroup") / "probe"
    own = ROOT / "tests" / "gpu" / "warpgroup_probe.cpp"
    sources = (own, SOURCES / "emulator" / "emulator.cpp", SOURCES / "status.cu")
    flags = ("-std=c++20", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}")
    command = ["g++", *flags, "-x", "c++", *map(str, sources), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    def run(kind: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(program), kind], capture_output=True, text=True, check=False, timeout=60)

    return run


def test_products_are_those_of_plain_loops_from_registers_and_from_shared_memory(probe):
    done = probe("right")
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("not published", "a product reads what was not published"),
        ("not opened", "a product that no open_products precedes"),
        ("not awaited", "a product that nobody waited for"),
        ("not arrived", "threads wait for what none of them will do"),
        ("not together", "warps of a group that do not take part in the same products"),
        ("not given", "threads that take more registers than others give"),
    ],
)
def test_a_kernel_with_a_mistake_ends_with_its_name(probe, mistake, said):
    done = probe(mistake)
    assert done.returncode != 0
    assert said in done.stderr


@pytest.mark.parametrize("mistake", ["read too early", "overwritten"])
def test_a_kernel_that_does_not_wait_for_its_products_gives_other_results(probe, mistake):
    done = probe(mistake)
    assert (done.returncode, done.stdout) == (0, "different\n"), done.stderr
