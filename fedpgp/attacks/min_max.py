"""Min-max: attackers go as far from the mean as two honest clients are from each other."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedpgp.attacks.base import Attack, AttackContext, Changes, register, stacked
from fedpgp.errors import check_choice

DIRECTIONS = ("unit", "std", "sign")
"""Values of ``attack.direction``: against the mean, its standard deviation, its sign."""


@register("min_max")
@dataclass(frozen=True)
class MinMax(Attack):
    """Send mean + gamma p (Shejwalkar & Houmansadr, NDSS 2021, equation 5).

    gamma is the largest for which no honest change is farther from it than the two farthest honest
    ones are from each other, over all tensors together. The paper looks for it by halving steps;
    here it is solved for: each honest change bounds it by the larger root of a quadratic equation.

    Attributes:
        scale: times gamma.
        direction: p, one of :data:`DIRECTIONS`: the inverse unit vector, the inverse standard
            deviation, or the inverse sign (section IV-C).
    """

    colludes = True
    scale: float
    direction: str

    def __post_init__(self):
        super().__post_init__()
        check_choice("attack.direction", self.direction, DIRECTIONS)

    def collude(self, honest: Sequence[Changes], attackers: int, context: AttackContext) -> Changes:
        tensors = stacked(honest)
        changes = np.concatenate([t.reshape(len(honest), -1) for t in tensors.values()], axis=1)
        mean = changes.mean(0)
        if self.direction == "std":
            p = -changes.std(0)
        else:
            norm = np.linalg.norm(mean)
            p = -np.sign(mean) if self.direction == "sign" else -mean / (norm if norm else 1.0)
        sent = mean + self.scale * largest_gamma(changes, mean, p) * p
        sizes = [tensor[0].size for tensor in tensors.values()]
        parts = np.split(sent, np.cumsum(sizes)[:-1])
        return {
            n: part.reshape(tensors[n].shape[1:]) for n, part in zip(tensors, parts, strict=True)
        }


def largest_gamma(changes: np.ndarray, mean: np.ndarray, p: np.ndarray) -> float:
    """Return the largest gamma for which ``mean + gamma p`` is no farther from any change than the
    two farthest changes are from each other.

    Args:
        changes: (clients, entries).
        mean, p: (entries,).
    """
    squares = np.square(changes).sum(1)
    between = squares[:, None] + squares[None] - 2 * changes @ changes.T
    away = mean - changes
    # |away + gamma p|^2 = farthest: a gamma^2 + 2 b gamma + c = 0, c <= 0
    a, b, c = p @ p, away @ p, np.square(away).sum(1) - max(0.0, between.max())
    if a == 0:
        return 0.0
    return float(((-b + np.sqrt(np.maximum(b * b - a * c, 0.0))) / a).min())
