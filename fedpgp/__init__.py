"""FedPGP and its peers: federated prompt learning on a frozen CLIP. Torch and open_clip only; no Flower, Ray or
Hydra."""

import os

# Spinning OpenMP threads collapse when another process has one of the cores (two Ray workers, a busy laptop): a step of
# a small model then takes a hundred times as long. It must be set before torch starts its threads; a user's own setting
# wins.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
