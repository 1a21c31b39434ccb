"""Settings of a whole process that make training fast: how long memory is kept, how OpenMP's
threads wait.

The commands make them when they begin, and everybody else has them from the first frozen model or
federation that is built. Importing the package changes nothing.
"""

import ctypes
import os
import sys
import threading
from functools import cache

THREADS_CHOSEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Environment variables by which a user chooses how threads wait."""

MEMORY_CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
"""Environment variables by which a user chooses what glibc keeps."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


@cache
def set_up_process() -> None:
    """Keep freed memory for the next step and let waiting threads give up their cores. A
    user's own settings win."""
    _keep_memory()
    _wait_passively()


def _keep_memory() -> None:
    """Let glibc keep 256 MiB of freed memory.

    It hands freed memory back to the kernel above 64 MiB, so every step of training would get its
    activations back page by page, each cleared anew. Blocks of up to 32 MiB, its limit, are kept.
    """
    if any(name in os.environ for name in MEMORY_CHOSEN):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    if mallopt(M_MMAP_THRESHOLD, 2**25):  # either of them ends its adapting by itself
        mallopt(M_TRIM_THRESHOLD, 2**28)


def _wait_passively() -> None:
    """Let waiting threads give up their cores, also in the processes that this one starts.

    Spinning threads collapse when another process has one of the cores (two Ray workers, a busy
    laptop): a step of a small model then takes many times as long.

    OpenMP reads its setting from the environment when torch is imported. Where torch is imported
    already, libgomp is given more threads than there are cores: it then spins for a microsecond
    only (its manual, GOMP_SPINCOUNT). They are those of a thread that has run one tensor operation
    and sleeps. Intel's and LLVM's library has a call for it.
    """
    if any(name in os.environ for name in THREADS_CHOSEN):
        return
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    torch = sys.modules.get("torch")
    if torch is None or torch.get_num_threads() == 1:
        return
    process = ctypes.CDLL(None)
    if hasattr(process, "kmp_set_blocktime"):
        process.kmp_set_blocktime(0)
        return
    there = threading.Event()

    def hold_threads() -> None:
        torch.ones(2**20, device="cpu").add_(1)  # large enough for all threads
        there.set()
        threading.Event().wait()

    threading.Thread(target=hold_threads, name="passive OpenMP threads", daemon=True).start()
    there.wait(10)
