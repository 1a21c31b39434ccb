"""Sign flip: a client sends its own change, reversed and enlarged."""

from dataclasses import dataclass

from fedpgp.attacks.base import Attack, AttackContext, Changes, register


@register("sign_flip")
@dataclass(frozen=True)
class SignFlip(Attack):
    """Send ``-scale`` times the change (the omniscient attack of Blanchard et al., NeurIPS 2017,
    with the client's own gradient; Li et al., AAAI 2019, "RSA")."""

    scale: float

    def forge(self, change: Changes, context: AttackContext) -> Changes:
        return {name: -self.scale * tensor for name, tensor in change.items()}
