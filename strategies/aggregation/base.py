"""The strategies that a configuration can name, each with a file in ``conf/strategy/``."""

from collections.abc import Iterable
from dataclasses import dataclass

from flwr.app import Array, ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
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


class ChangeFedAvg(FedAvg):
    """Flower's FedAvg for strategies that look at changes: it keeps what the clients were sent.

    Args:
        context: of the run.
        options: of Flower's FedAvg.

    Attributes:
        sent: the global tensors of the round; None before the first.
    """

    def __init__(self, *, context: StrategyContext | None = None, **options):
        super().__init__(**options)
        self.context = context or StrategyContext()
        self.sent: ArrayRecord | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.sent = ArrayRecord({name: Array(array.numpy()) for name, array in arrays.items()})
        return super().configure_train(server_round, arrays, config, grid)
