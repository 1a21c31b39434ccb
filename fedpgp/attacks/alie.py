"""ALIE, "a little is enough": attackers hide inside the spread of the honest changes."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from fedpgp.attacks.base import Attack, AttackContext, Changes, register, stacked
from fedpgp.errors import check_number


@register("alie")
@dataclass(frozen=True)
class ALIE(Attack):
    """Send mean - z times standard deviation of the honest changes, entry by entry (Baruch et al.,
    NeurIPS 2019, algorithm 3; moranant/attacking_distributed_learning).

    Attributes:
        scale: z; None: the paper's largest one for n clients of which m attack,
            ``Phi(z) = (n - m - s) / (n - m)`` with ``s = floor(n / 2 + 1) - m``. It is 0 where
            the attackers are too few, and the largest for s = 1 where they are too many.
    """

    colludes = True
    scale: float | None

    def __post_init__(self):
        check_number("attack.share", self.share, above=0, below=1)
        if self.scale is not None:
            check_number("attack.scale", self.scale, least=0)

    def collude(self, honest: Sequence[Changes], attackers: int, context: AttackContext) -> Changes:
        z = z_max(len(honest), attackers) if self.scale is None else self.scale
        return {
            name: tensors.mean(0) - z * tensors.std(0) for name, tensors in stacked(honest).items()
        }


def z_max(honest: int, attackers: int) -> float:
    """Return the largest z that the paper allows (equation 3)."""
    supporters = max(1, (honest + attackers) // 2 + 1 - attackers)
    below = (honest - supporters) / honest
    return max(0.0, NormalDist().inv_cdf(below)) if below > 0 else 0.0
