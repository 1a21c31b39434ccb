"""FedPGP and its peers: federated prompt learning on a frozen CLIP. Torch and open_clip only; no Flower, Ray or
Hydra."""

import ctypes
import os

# Spinning OpenMP threads collapse when another process has one of the cores (two Ray workers, a busy laptop): a step of
# a small model then takes a hundred times as long. It must be set before torch starts its threads; a user's own setting
# wins.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if "MALLOC_TRIM_THRESHOLD_" not in os.environ:
    # glibc hands freed memory back to the kernel above 64 MiB, so every step of training would get its activations back
    # page by page, each cleared anew. It may keep 1 GiB for the next step; blocks of up to 32 MiB, its limit, are kept.
    try:
        _libc = ctypes.CDLL(None)
        _libc.mallopt(-1, 2**30)  # M_TRIM_THRESHOLD
        _libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: setting the other ended its adapting by itself
    except (AttributeError, OSError, TypeError):  # another C library
        pass

__version__ = "0.1.0"
