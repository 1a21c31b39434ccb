"""What one client's update may weigh in a round: bounds by the round's own median, which no
minority can move far."""

from collections.abc import Callable, Collection, Mapping
from statistics import median_low

import numpy as np
from flwr.app import Message, MetricRecord

from fedpgp.config import StrategySection

Arrays = Mapping[str, np.ndarray]
BegunWith = Callable[[Arrays, Arrays], Arrays]
"""(global tensors, update) -> what that client began with (``Method.begun_with``)."""


def norm(tensors: Collection[np.ndarray]) -> float:
    """Return the Euclidean norm of all entries together, without overflow before the result itself
    does."""
    largest = max((float(np.abs(tensor).max(initial=0.0)) for tensor in tensors), default=0.0)
    if largest == 0 or not np.isfinite(largest):
        return largest
    with np.errstate(under="ignore"):
        return largest * float(
            np.sqrt(sum(np.square(tensor / largest, dtype=np.float64).sum() for tensor in tensors))
        )


def update_norms(
    update: Arrays, begun: Arrays, delta_params: Collection[str]
) -> tuple[float, float]:
    """Return the norms of a client's change against what it began with, and of what it sends
    as a difference already.

    They are of different scales (a prompt, a mean gradient) and are compared apart.

    Args:
        update, begun: tensors by name.
        delta_params: names of those whose update is a difference (``Method.delta_params``).
    """
    with np.errstate(over="ignore"):
        changes = [
            np.subtract(update[n], begun[n], dtype=np.float64)
            for n in begun
            if n not in delta_params
        ]
    return norm(changes), norm([update[n].astype(np.float64) for n in begun if n in delta_params])


def too_large(
    updates: Mapping[int, Arrays],
    global_params: Arrays,
    delta_params: Collection[str],
    most: float,
    spare: int,
    begun_with: BegunWith = lambda global_params, update: global_params,
) -> dict[int, str]:
    """Return the clients whose update is out of proportion, and why.

    The measure is the lower median of the round's norms; where more than half of the
    clients did not move, that of those that did. A client that is alone has nobody to be
    compared with, and passes. Of two nobody knows which is out of proportion: one that has
    learned its images already hardly moves. There a change is measured against what the clients
    were sent, where that is more.

    Args:
        updates: client -> what it sent; all are finite and of the right shapes.
        global_params: what they were sent.
        delta_params: see :func:`update_norms`.
        most: times the median that a norm may be (``strategy.max_update_norm``).
        spare: how many clients the strategy can do without; the largest updates go first.
        begun_with: of the method; by default all clients began with what they were sent.
    """
    norms = {
        client: update_norms(update, begun_with(global_params, update), delta_params)
        for client, update in updates.items()
    }
    ratios = dict.fromkeys(norms, 0.0)
    for part in (0, 1):
        moved = [own[part] for own in norms.values() if own[part] > 0]
        if not moved:
            continue
        middle = median_low([own[part] for own in norms.values()]) or median_low(moved)
        if len(norms) == 2 and part == 0:
            sent = [global_params[n] for n in global_params if n not in delta_params]
            middle = max(middle, norm(sent))
        for client, own in norms.items():
            with np.errstate(over="ignore"):
                ratios[client] = max(ratios[client], float(np.divide(own[part], middle)))
    worst = sorted(
        (client for client in ratios if ratios[client] > most),
        key=lambda client: (-ratios[client], client),
    )
    return {
        client: f"its update is {ratios[client]:.3g} times as large as the round's median "
        f"(strategy.max_update_norm={most:g})"
        for client in worst[: max(0, spare)]
    }


def capped(images: Mapping[int, int], most: float) -> dict[int, int]:
    """Return the weights of clients that say they have too many images: ``most`` times
    the round's lower median.

    Args:
        images: client -> images it says it has, of all that count in a round.
        most: ``strategy.max_weight``.
    """
    bound = max(1, int(most * median_low(images.values())))
    return {client: bound for client, count in sorted(images.items()) if count > bound}


class UpdateBounds:
    """The bounds of a run (``strategy.max_update_norm``, ``strategy.max_weight``).

    Args:
        settings: the configuration's ``strategy``.
        delta_params: see :func:`update_norms`.
        counted: whether somebody else than the client counts its images, or all weigh the same;
            then no weight is capped.
        combined: whether an update step sums the updates; then none is refused because of the
            others: who counts must not depend on them.
        warn: told of a client whose weight is capped, once.
        begun_with: ``Method.begun_with``.
    """

    def __init__(
        self,
        settings: StrategySection,
        delta_params: Collection[str],
        counted: bool,
        combined: bool,
        warn: Callable[[str], None],
        begun_with: BegunWith,
    ):
        self._max_norm = None if combined else settings.max_update_norm
        self._max_weight, self._begun_with = settings.max_weight, begun_with
        self._delta_params, self._counted, self._warn = delta_params, counted, warn
        self._capped: set[int] = set()  # clients whose weight was capped, and said so

    def screen(
        self, good: Mapping[int, Message], global_params: Arrays, needed: int
    ) -> dict[int, str]:
        """Return the clients whose update is out of proportion, and why.

        Args:
            good: client -> its reply.
            global_params: what the clients were sent.
            needed: as many clients are left to the strategy.
        """
        if self._max_norm is None or not global_params:
            return {}
        updates = {
            c: {n: a.numpy() for n, a in reply.content["arrays"].items()}
            for c, reply in good.items()
        }
        about = (self._delta_params, self._max_norm, len(good) - needed, self._begun_with)
        return too_large(updates, global_params, *about)

    def cap(self, metrics: Mapping[int, MetricRecord], images: Mapping[int, int]) -> dict[int, int]:
        """Cap the weights of clients whose images nobody else has counted; return those that are.

        Args:
            metrics: client -> the metrics of its training; ``num-examples`` is changed in place.
            images: client -> images it says it has.
        """
        if self._max_weight is None or self._counted:
            return {}
        caps = capped(images, self._max_weight)
        for client, weight in caps.items():
            metrics[client]["num-examples"] = weight
        for client in caps.keys() - self._capped:
            self._warn(
                f"client {client} says it has {images[client]:,} images and counts as "
                f"{caps[client]:,} (strategy.max_weight={self._max_weight:g})"
            )
        self._capped |= caps.keys()
        return caps
