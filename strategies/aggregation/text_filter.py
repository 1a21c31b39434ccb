"""``text_filter``: updates that mean something else than the others' are left out."""

from collections.abc import Iterable, Sequence

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord

from fedpgp.errors import FedPGPError, check_number
from strategies.aggregation.base import FILTERED, ChangeFedAvg, StrategyContext, register


@register("text_filter")
class TextFilter(ChangeFedAvg):
    """Average the clients whose class embeddings are near those of most clients.

    A prompt is a few thousand numbers whose single entries mean little. What it does to a class is
    its class embedding, so updates are compared there, in two ways:

        d_k = mean over classes v of 1 - cos(z_kv, m_v)     where the classes are
        a_k = 1 - cos(z_k - z, median(z_k - z))             where they go, all classes one vector

    z_k are the class embeddings of client k (unit norm), z those of what it was sent, m the median
    of the z_k over clients, entry by entry. A client is left out when its d_k or its a_k is more
    than ``threshold`` median absolute deviations (MAD) above the median of all; of each, at least
    half of the clients stay. (The rule of Leys et al., J. Exp. Soc. Psychol. 2013, in the space
    that SABRE-FL, arXiv 2506.22506, looks at with a detector that has to be trained.)

    Args:
        threshold: times the MAD.
        context: of the run.
        options: of Flower's FedAvg.
    """

    def __init__(
        self, *, threshold: float = 3.0, context: StrategyContext | None = None, **options
    ):
        super().__init__(context=context, **options)
        check_number("strategy.threshold", threshold, above=0)
        self.threshold = threshold
        if why := self.context.no_class_embeddings:
            raise FedPGPError(
                "strategy=text_filter compares class embeddings, and there are none of "
                f"method={self.context.method}: {why}"
            )

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = [reply for reply in replies if not reply.has_error()]
        embeddings = np.stack([self._embeddings(reply.content["arrays"]) for reply in replies])
        changes = embeddings - self._embeddings(self.sent)
        changes = changes.reshape(len(changes), 1, -1)
        far = outliers(distances(embeddings), self.threshold)
        far |= outliers(distances(changes), self.threshold)
        if far.all():  # each by one of the two
            far[:] = False
        kept = [reply for reply, left_out in zip(replies, far, strict=True) if not left_out]
        arrays, _ = super().aggregate_train(server_round, kept)
        clients = [
            reply.metadata.src_node_id
            for reply, left_out in zip(replies, far, strict=True)
            if left_out
        ]
        return arrays, MetricRecord({FILTERED: clients})

    def _embeddings(self, arrays: ArrayRecord) -> np.ndarray:
        shared = {name: array.numpy() for name, array in arrays.items()}
        return self.context.class_embeddings(shared)


def distances(vectors: np.ndarray) -> np.ndarray:
    """Return each client's 1 - cosine to the median over clients, a mean over its vectors, (S,).

    Args:
        vectors: (S, V, e).
    """
    # A huge update can have class embeddings that are no numbers: the median is of the others.
    finite = np.isfinite(vectors).all((1, 2))
    middle = np.median(vectors[finite if finite.any() else slice(None)], axis=0)
    norms = np.linalg.norm(vectors, axis=-1) * np.linalg.norm(middle, axis=-1)
    return (1 - (vectors * middle).sum(-1) / np.maximum(norms, 1e-12)).mean(-1)


def outliers(values: Sequence[float], threshold: float) -> np.ndarray:
    """Return which values are more than ``threshold`` median absolute deviations above the
    median, or not finite."""
    values = np.asarray(values)
    finite = np.isfinite(values)
    if not finite.any():
        return ~finite
    middle = np.median(values[finite])
    spread = np.median(np.abs(values[finite] - middle))
    return ~finite | (values > middle + threshold * spread)
