"""What every test may rely on: the repository is importable (also in Ray's workers), no network."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # tests.small, by that name in every process

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # the tensors are small: threads would only wait for each other
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.pop("COLUMNS", None)  # pytest-xdist's: tables are as wide as without a terminal
