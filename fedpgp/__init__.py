"""FedPGP and its peers: federated prompt learning on a frozen CLIP. Torch and open_clip only; no
Flower, Ray or Hydra."""

__version__ = "0.1.0"
