"""The arithmetic of this process, as a name: two workers with one name compute equal bits from equal input."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from engine.ops.names import OpName

_NO_TACTICS: Mapping[str, str] = MappingProxyType({})


def supports_fast_bfloat16() -> bool:
    """Whether the native kernels multiply bfloat16 itself; without, rows in float32 are as fast and closer."""
    try:
        from engine.ops.native_kernels import isa  # noqa: PLC0415 (perhaps not built)
    except ImportError:
        return False
    return isa() == "amx"


def numerics_id(dtype: str, implementations: Mapping[OpName, str], tactics: Mapping[str, str] = _NO_TACTICS) -> str:
    """Readable; part of the compatibility id of a prefill/decode pair. `implementations` by operation, tuned `tactics`
    by shape, as `TacticTable.identity` has them.

    Native operations bring along their instruction set, since bfloat16 has another arithmetic on AMX; torch's
    operations the library's version, and the capability, CPU vendor and thread count its kernels depend on.
    """
    parts = [dtype]
    if any(name != "torch" for name in implementations.values()):
        from engine.ops.native_kernels import isa  # noqa: PLC0415 (perhaps not built, but then not chosen either)

        parts.append(f"isa={isa()}")
    parts += [f"{operation}={name}" for operation, name in implementations.items()]
    if "torch" in implementations.values():
        import torch  # noqa: PLC0415 (loaded already by who uses its operations)

        capability = torch.backends.cpu.get_cpu_capability()
        parts += [f"torch={torch.__version__}", f"capability={capability}"]
        parts += [f"cpu={_cpuinfo('vendor_id')}", f"threads={torch.get_num_threads()}"]
    parts += [f"{shape}={tactic}" for shape, tactic in tactics.items()]
    return ";".join(parts)


def gpu_numerics_id(
    capability: tuple[int, int],
    implementations: Mapping[OpName, str],
    tactics: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """As `numerics_id`, for a model in bfloat16 on a GPU of this compute capability: matrix units round as their
    generation does, and torch's operations as its version and CUDA's do."""
    import torch  # noqa: PLC0415 (loaded already by whoever computes on a GPU)

    parts = ["bfloat16", f"gpu=sm_{capability[0]}{capability[1]}"]
    parts += [f"{operation}={name}" for operation, name in implementations.items()]
    if "torch" in implementations.values():
        parts += [f"torch={torch.__version__}", f"cuda={torch.version.cuda}"]
    parts += [f"{shape}={tactic}" for shape, tactic in tactics.items()]
    return ";".join(parts)


def _cpuinfo(field: str) -> str:
    """Of the first processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return "unknown"
    return next(
        (line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), "unknown"
    )
