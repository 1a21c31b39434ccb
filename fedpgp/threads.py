"""How OpenMP's threads wait for work."""

import ctypes
import os
import sys
import threading

CHOSEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Environment variables by which a user chooses for themselves."""


def wait_passively() -> None:
    """Lets waiting threads give up their cores, also in the processes that this one starts.

    Spinning threads collapse when another process has one of the cores (two Ray workers, a busy laptop): a step of a
    small model then takes many times as long. A user's own setting wins.

    OpenMP reads its setting from the environment when torch is imported. Where torch is imported already, libgomp is
    given more threads than there are cores: it then spins for a microsecond only (its manual, GOMP_SPINCOUNT). They are
    those of a thread that has run one tensor operation and sleeps. Intel's and LLVM's library has a call for it.
    """
    if any(name in os.environ for name in CHOSEN):
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
