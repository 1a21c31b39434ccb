"""The precisions that a configuration names, and where bfloat16 products are native."""

from pathlib import Path

import torch

from fedpgp.clip import has_plain_text, resolve_device

DTYPES = {
    "float32": (torch.float32, torch.float32),
    "float64": (torch.float64, torch.float64),
    "bfloat16": (torch.float32, torch.bfloat16),
}
"""Name -> precision of prompts, optimizer and losses, and of the text tower's matrix products."""

NATIVE = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16", "sve_bf16"})
"""Names of instructions that multiply bfloat16, on x86 and ARM: Linux's, and torch's."""

CPUINFO = Path("/proc/cpuinfo")
"""Linux lists the instructions there that processor and kernel support: AMX needs both."""

AMPERE = 8
"""Major compute capability of the first NVIDIA GPUs with bfloat16 units."""


def native_bfloat16(device: torch.device) -> bool | None:
    """Return whether a device multiplies bfloat16 natively; None where nobody says.

    Elsewhere such products are emulated, and slower than float32's.

    Args:
        device: of this machine.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= AMPERE
    if device.type != "cpu":
        return None
    found = _instructions()
    return bool(found & NATIVE) if found else None


def resolve_dtype(dtype: str, device: str, model: str) -> str:
    """``auto`` -> bfloat16 where it is native on the device and the model is known to share a
    prefix, else float32; any other name is itself.

    Args:
        dtype: as a configuration names it.
        device: the same, of this machine.
        model: the same; one that takes full sequences does so in its own precision alone.
    """
    if dtype != "auto":
        return dtype
    native = native_bfloat16(resolve_device(device))
    return "bfloat16" if native and has_plain_text(model) else "float32"


def _instructions() -> set[str]:
    """Return the names of the processor's instructions; empty where nobody says."""
    try:
        lines = CPUINFO.read_text(errors="replace").splitlines()
    except OSError:  # not Linux
        known = getattr(torch.cpu, "get_capabilities", dict)()  # from torch 2.10
        return {name for name, there in known.items() if there is True}
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(value.split())
    return set()
