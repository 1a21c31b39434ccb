"""Which number of a vector is which: the tensors of an update, and what it weighs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedpgp.secure_sum.quantise import Quantiser


@dataclass(frozen=True)
class Layout:
    """The tensors by name, one after the other; behind them the client's weight, where clients do
    not weigh the same.

    A client that weighs w of at most W sends w / W times its change, and w: so the mean by weights
    comes of the sums, and nobody sees a single w.

    Attributes:
        shapes: name -> shape.
        most: W; None: all weigh the same.

    Example:
        >>> layout, quantiser = Layout({"p": (2,)}, most=10), Quantiser(clients=2, largest=1.0)
        >>> total = layout.encoded({"p": np.array([0.5, 0.0])}, 1, quantiser)
        >>> total += layout.encoded({"p": np.array([0.1, 0.8])}, 3, quantiser)
        >>> tensors, weight = layout.decoded(total, 2, quantiser)
        >>> (tensors["p"] / weight).round(6).tolist()
        [0.2, 0.6]
    """

    shapes: Mapping[str, tuple[int, ...]]
    most: int | None = None

    @property
    def size(self) -> int:
        """Numbers of a vector."""
        return sum(map(math.prod, self.shapes.values())) + (self.most is not None)

    def encoded(
        self, update: Mapping[str, np.ndarray], weight: int, quantiser: Quantiser
    ) -> np.ndarray:
        """Return a client's vector, (size,) uint32.

        Args:
            update: name -> float64.
            weight: of the client; more than ``most`` counts as that.
            quantiser: of the sum.

        Raises:
            FedPGPError: a number is too large for the sum.
        """
        numbers = np.concatenate([np.ravel(update[name]) for name in sorted(self.shapes)])
        if self.most is None:
            return quantiser.encoded(numbers)
        weight = min(weight, self.most)
        quantiser.check(numbers)
        encoded = quantiser.encoded(numbers * (weight / self.most))
        return np.append(encoded, np.uint32(weight))

    def decoded(
        self, total: np.ndarray, clients: int, quantiser: Quantiser
    ) -> tuple[dict[str, np.ndarray], float]:
        """Return the sum of the clients' weighted changes, float64, and of their weights: what the
        mean is of both.

        Args:
            total: (size,) uint32.
            clients: that are in it.
            quantiser: of the sum.
        """
        weight = float(clients)
        if self.most is not None:
            weight, total = int(total[-1]) / self.most, np.ascontiguousarray(total[:-1])
        numbers, tensors, place = quantiser.decoded(total), {}, 0
        for name, shape in sorted(self.shapes.items()):
            tensors[name] = numbers[place : place + math.prod(shape)].reshape(shape)
            place += math.prod(shape)
        return tensors, weight
