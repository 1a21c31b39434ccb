"""What every test may rely on: the repository is importable (also in Ray's workers), no network logger, no leftover threads setting."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # tests.small, by that name in every process

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
