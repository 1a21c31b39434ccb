"""What every test may rely on: the repository is importable (also in Ray's workers), no network,
and none of a user's own settings."""

import gc
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # tests.helpers.small, by that name in every process

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # the tensors are small: threads would only wait for each other
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# What somebody has set for runs of their own, or for their terminal, changes no test.
for name in (
    *("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"),
    *("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"),
    *("FEDPGP_DATA", "FEDPGP_ASSETS", "FLWR_HOME", "FEDPGP_CERTIFICATES"),
    *("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"),
    *("HYDRA_FULL_ERROR", "PYTHONWARNINGS"),
    # pytest-xdist sets COLUMNS too: tables are as wide as without a terminal.
    *("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"),
):
    os.environ.pop(name, None)


@pytest.fixture(scope="module", autouse=True)
def small_heap():
    """Each run collects garbage before it measures memory, and Flower's Bulyan for every tensor:
    slow beside the heap of a whole session, quick without."""
    gc.collect()
    gc.freeze()
