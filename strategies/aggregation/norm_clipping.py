"""``norm_clipping``: no client moves the mean by more than a typical one."""

from collections.abc import Iterable
from statistics import median_low

from flwr.app import Array, ArrayRecord, Message, MetricRecord

from fedpgp.errors import check_number
from strategies.aggregation.base import ChangeFedAvg, StrategyContext, register
from strategies.screening import update_norms


@register("norm_clipping")
class NormClipping(ChangeFedAvg):
    """Average changes that are scaled down to a bound on their norm (Sun et al., arXiv 1911.07963).

    The bound is ``factor`` times the lower median of the round's norms, over all shared tensors
    together: a fixed number would have to be known for each method and learning rate. Tensors that
    clients send as a difference have a bound of their own.

    Args:
        factor: times the median.
        context: of the run.
        options: of Flower's FedAvg.
    """

    def __init__(self, *, factor: float = 1.0, context: StrategyContext | None = None, **options):
        super().__init__(context=context, **options)
        check_number("strategy.factor", factor, above=0)
        self.factor = factor

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = [reply for reply in replies if not reply.has_error()]
        sent = {name: array.numpy() for name, array in self.sent.items()}
        deltas = self.context.delta_params
        updates = [
            {name: array.numpy() for name, array in reply.content["arrays"].items()}
            for reply in replies
        ]
        norms = [update_norms(update, sent, deltas) for update in updates]
        bounds = [self.factor * median_low(part) for part in zip(*norms, strict=True)]
        for reply, update, own in zip(replies, updates, norms, strict=True):
            scales = [
                min(1.0, bound / norm) if norm else 1.0
                for bound, norm in zip(bounds, own, strict=True)
            ]
            reply.content["arrays"] = ArrayRecord(
                {
                    name: Array(_scaled(tensor, sent[name], scales, name in deltas))
                    for name, tensor in update.items()
                }
            )
        return super().aggregate_train(server_round, replies)


def _scaled(tensor, sent, scales: list[float], is_delta: bool):
    """Return a client's tensor with its change, or the difference that it is, scaled down."""
    if is_delta:
        return (scales[1] * tensor).astype(tensor.dtype)
    return (sent + scales[0] * (tensor - sent)).astype(tensor.dtype) if scales[0] < 1 else tensor
