"""The arithmetic of this process, as a name: two workers with one name compute equal bits from equal input."""

from __future__ import annotations

from pathlib import Path

import torch

from engine.ops.registry import OpTable


def supports_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself; without, float32 is faster and no less exact."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def numerics_id(dtype: torch.dtype, ops: OpTable) -> str:
    """Readable; part of the compatibility id of a prefill/decode pair.

    torch's operations bring along the library's version, and the CPU vendor and thread count its kernels depend on.
    """
    parts = [str(dtype).removeprefix("torch."), f"isa={torch.backends.cpu.get_cpu_capability()}"]
    parts += [f"{op}={name}" for op, name in ops.names.items()]
    if "torch" in ops.names.values():
        parts += [f"torch={torch.__version__}", f"cpu={_cpu_vendor()}", f"threads={torch.get_num_threads()}"]
    return ";".join(parts)


def _cpu_vendor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return "unknown"
    vendors = (line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id"))
    return next(vendors, "unknown")
