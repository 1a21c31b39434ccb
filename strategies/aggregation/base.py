"""The strategies that a configuration can name, each with a file in ``conf/strategy/``."""

from dataclasses import dataclass

from flwr.serverapp.strategy import FedAvg

from fedpgp.class_embeddings import ClassEmbeddings
from fedpgp.registry import Registry

STRATEGIES: Registry[type[FedAvg]] = Registry("strategies.aggregation")
"""Name -> Flower strategy. A new file in this folder needs no mention anywhere else."""

register = STRATEGIES.register

FILTERED = "filtered"
"""In the metrics that ``aggregate_train`` returns: the clients that a strategy left out."""


@dataclass(frozen=True)
class StrategyContext:
    """What a strategy may need to know beside the updates; one that has a parameter ``context`` is
    given it.

    Attributes:
        method: name of the run's method.
        delta_params: shared tensors that clients send as a difference (``Method.delta_params``).
        no_class_embeddings: why there are none (``Method.no_class_embeddings``); empty: there are.
        class_embeddings: makes them of shared tensors; None where a configuration is only checked.
    """

    method: str = ""
    delta_params: tuple[str, ...] = ()
    no_class_embeddings: str = ""
    class_embeddings: ClassEmbeddings | None = None
