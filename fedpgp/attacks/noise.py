"""Noise: a client sends Gaussian noise."""

from dataclasses import dataclass

import numpy as np

from fedpgp.attacks.base import Attack, AttackContext, Changes, register


@register("noise")
@dataclass(frozen=True)
class Noise(Attack):
    """Send Gaussian noise in the place of the change (Blanchard et al., NeurIPS 2017, section 6).

    Its deviation is ``scale`` times the root mean square of the change, tensor by tensor, so that a
    scale of 1 cannot be told by its norm.
    """

    scale: float

    def forge(self, change: Changes, context: AttackContext) -> Changes:
        rng = context.rng()
        return {
            name: self.scale
            * np.sqrt(np.mean(np.square(change[name])))
            * rng.standard_normal(change[name].shape)
            for name in sorted(change)
        }
