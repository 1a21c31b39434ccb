"""Flower's strategies where they take longer than they need, or start from the wrong tensors."""

from collections.abc import Iterable

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid, strategy


class Bulyan(strategy.Bulyan):
    """Flower's Bulyan without its collection of garbage for every client, which takes most of the
    time.

    It selects by one pass of Multi-Krum, so the distances are computed once. (El Mhamdi et al.,
    ICML 2018, run Krum again on what is left after each choice.)
    """

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = list(replies)
        for reply in replies:
            if not reply.has_error():
                for name, record in list(reply.content.array_records.items()):
                    reply.content[name] = _Kept(dict(record))
        return super().aggregate_train(server_round, replies)


class _Kept(ArrayRecord):
    """Arrays that stay in their record where Flower would take them out of it and collect
    garbage."""

    def to_numpy_ndarrays(self, *, keep_input: bool = True) -> list:
        return super().to_numpy_ndarrays()


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
