"""FedPGP and its peers: federated prompt learning on a frozen CLIP. Torch and open_clip only; no Flower, Ray or
Hydra."""

import ctypes
import os

from fedpgp.threads import wait_passively

wait_passively()

# glibc hands freed memory back to the kernel above 64 MiB, so every step of training would get its activations back
# page by page, each cleared anew. It may keep 256 MiB for the next step; blocks of up to 32 MiB, its limit, are kept. A
# user's own settings win.
if not {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"} & set(os.environ):
    try:
        _mallopt = ctypes.CDLL(None).mallopt
        if _mallopt(-3, 2**25):  # M_MMAP_THRESHOLD: either of them ends its adapting by itself
            _mallopt(-1, 2**28)  # M_TRIM_THRESHOLD
    except (AttributeError, OSError, TypeError):  # another C library
        pass

__version__ = "0.1.0"
