"""Free rider: a client that has the global model and gives nothing."""

from dataclasses import dataclass

from fedpgp.attacks.base import Attack, AttackContext, Changes, register


@register("free_rider")
@dataclass(frozen=True)
class FreeRider(Attack):
    """Send the global tensors back, disguised by noise (Fraboni et al., AISTATS 2021).

    Section 3: a plain free rider (``scale`` 0) sends what it was sent; a disguised one adds
    phi(t) e with e ~ N(0, I) and phi(t) = scale / t in round t (the paper's sigma t^-gamma with
    gamma = 1).
    """

    scale: float

    def forge(self, change: Changes, context: AttackContext) -> Changes:
        rng, deviation = context.rng(), self.scale / context.server_round
        return {
            name: deviation * rng.standard_normal(change[name].shape) for name in sorted(change)
        }
