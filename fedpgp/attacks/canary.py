"""Canary: a client that an audit can recognise."""

from dataclasses import dataclass

import numpy as np

from fedpgp.attacks.base import Attack, AttackContext, Changes, register
from fedpgp.seeding import generator


@register("canary")
@dataclass(frozen=True)
class Canary(Attack):
    """Send the same random direction in every round, or nothing: what an audit looks for.

    The direction is uniform on the sphere over all shared tensors together, and has the norm
    ``scale`` (Andrew et al., ICLR 2024, arXiv 2302.03098, section 3). By a fair coin of its own a
    canary is there or sends no change (Steinke et al., NeurIPS 2023).
    """

    scale: float

    def forge(self, change: Changes, context: AttackContext) -> Changes:
        factor = self.scale * included(context.seed, context.client)
        found = direction({name: np.shape(change[name]) for name in change}, context)
        return {name: factor * part for name, part in found.items()}


def included(seed: int, client: int) -> bool:
    """Return whether a canary is there."""
    return bool(generator(seed, "canary", client).random() < 0.5)


def direction(shapes: dict[str, tuple[int, ...]], context: AttackContext) -> Changes:
    """Return a canary's direction: tensors of these shapes, of norm 1 over all of them together."""
    rng = generator(context.seed, "canary direction", context.client)
    parts = {name: rng.standard_normal(shapes[name]) for name in sorted(shapes)}
    norm = np.sqrt(sum(float(np.square(part).sum()) for part in parts.values()))
    return {name: part / norm for name, part in parts.items()}
