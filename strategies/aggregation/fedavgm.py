"""``fedavgm``: Flower's, from the tensors that were sent."""

from collections.abc import Iterable

from flwr.app import Array, ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid, strategy

from strategies.aggregation.base import register


@register("fedavgm")
class FedAvgM(strategy.FedAvgM):
    """Flower's FedAvgM with steps from the tensors that were sent. Flower's own go from
    those of its last step, which are others where a method adds to a round's result, or
    a round is done again."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.current_arrays = ArrayRecord(
            {name: Array(array.numpy()) for name, array in arrays.items()}
        )
        return super().configure_train(server_round, arrays, config, grid)
