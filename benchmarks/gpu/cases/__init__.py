"""What is measured: each kernel on the shapes of real models, with the bytes and operations it must move and do."""

from __future__ import annotations

from benchmarks.gpu.cases import (
    attention,
    experts,
    fp8,
    fp8_experts,
    latent,
    products,
    quantised,
    rows,
    sampling,
    transfer,
)
from benchmarks.gpu.cases.case import Case


def cases() -> list[Case]:
    """In the order in which they are measured: first those that targets are about, then what decode needs most."""
    found = [
        *attention.decode(),
        *attention.prefill(),
        *latent.decode(),
        *products.cases(),
        *fp8.cases(),
        *experts.cases(),
        *fp8_experts.cases(),
        *transfer.cases(),
        *rows.cases(),
        *latent.rows(),
        *quantised.cases(),
        *latent.prefill(),
        *sampling.cases(),
    ]
    return sorted(found, key=lambda case: not case.goal)
