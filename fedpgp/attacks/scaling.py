"""Scaling: a client sends its own change, enlarged."""

from dataclasses import dataclass

from fedpgp.attacks.base import Attack, AttackContext, Changes, register


@register("scaling")
@dataclass(frozen=True)
class Scaling(Attack):
    """Send ``scale`` times the change (Bagdasaryan et al., AISTATS 2020, equation 3: model
    replacement, where scale is the number of clients over the server's learning rate)."""

    scale: float

    def forge(self, change: Changes, context: AttackContext) -> Changes:
        return {name: self.scale * tensor for name, tensor in change.items()}
