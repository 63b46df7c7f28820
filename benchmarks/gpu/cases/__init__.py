"""What is measured: each kernel on the shapes of real models, with the bytes and operations it must move and do."""

from __future__ import annotations

from benchmarks.gpu.cases import attention, experts, fp8, latent, products, quantised, rows, sampling, transfer
from benchmarks.gpu.cases.case import Case


def cases() -> list[Case]:
    """In the order in which they are measured: first what decode needs most."""
    return [
        *attention.decode(),
        *latent.decode(),
        *rows.cases(),
        *latent.rows(),
        *products.cases(),
        *fp8.cases(),
        *quantised.cases(),
        *experts.cases(),
        *attention.prefill(),
        *latent.prefill(),
        *sampling.cases(),
        *transfer.cases(),
    ]
