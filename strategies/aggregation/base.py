"""The strategies that a configuration can name, each with a file in ``conf/strategy/``."""

from flwr.serverapp.strategy import FedAvg

from fedpgp.registry import Registry

STRATEGIES: Registry[type[FedAvg]] = Registry("strategies.aggregation")
"""Name -> Flower strategy. A new file in this folder needs no mention anywhere else."""

register = STRATEGIES.register
