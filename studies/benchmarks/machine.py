"""What a result file says of the machine; benchmarks are scripts of this folder and import it by its name."""

import platform
from pathlib import Path


def cpu_lines() -> list[str]:
    """Return what the system says of its processors, or nothing where it has no such file."""
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def cpu_name() -> str:
    """Return the name of the processor."""
    names = (line.partition(":")[2].strip() for line in cpu_lines() if line.startswith("model name"))
    return next(names, platform.processor())


def cpu_name_with_units() -> str:
    """Return the name of the processor, and which of its wide units matter for bf16."""
    flags = next((line for line in cpu_lines() if line.startswith("flags")), "")
    known = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in flags.split()]
    return f"{cpu_name()} ({', '.join(known) or 'no AVX-512'})"
