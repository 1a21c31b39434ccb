"""IPM, inner product manipulation: attackers turn the mean round."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedpgp.attacks.base import Attack, AttackContext, Changes, register, stacked


@register("ipm")
@dataclass(frozen=True)
class IPM(Attack):
    """Send ``-scale`` times the mean of the honest changes (Xie et al., UAI 2019, section 4, where
    scale is called epsilon)."""

    colludes = True
    scale: float

    def collude(self, honest: Sequence[Changes], attackers: int, context: AttackContext) -> Changes:
        return {name: -self.scale * tensors.mean(0) for name, tensors in stacked(honest).items()}
