"""This process's peak memory, counted from a moment on."""

import ctypes
import gc
from pathlib import Path

_STATUS = Path("/proc/self/status")


def start_peak() -> bool:
    """Let the peak of the resident set start from here; False where the system keeps one for a
    process's whole life (all but Linux), or does not let it be reset."""
    try:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what earlier work freed would count for what comes next
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):  # no such file, or a C library without malloc_trim
        return False
    return True


def status_mb(field: str) -> float:
    """Return a size that Linux tells of this process, in MiB: `VmRSS` now, `VmHWM` at its
    highest."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 2**10
