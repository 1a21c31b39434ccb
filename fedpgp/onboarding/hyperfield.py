"""``hyperfield``: the term after ``protocol.steps`` training steps, from one call of the server's
field (``method=hyperfield``, :mod:`fedpgp.methods.hyperfield`): the newcomer trains nothing.

    theta = (U_0, V_0) + t/T H(t/T, v; phi)        t = protocol.steps
"""

import torch

from fedpgp.methods import Method
from fedpgp.methods.hyperfield import HyperField
from fedpgp.onboarding.base import register
from fedpgp.onboarding.hyper import Written
from fedpgp.onboarding.newcomers import Newcomer, Onboarded
from fedpgp.protocols.onboarding_options import OnboardingOptions


@register("hyperfield")
class Field(Written):
    """The newcomer reveals its description. Trained clients share no more than method=hyperfield
    sends."""

    fine_tunes = False
    steps_without_images = True

    @classmethod
    def why_not_method(cls, options: OnboardingOptions, method: Method) -> str | None:
        if not isinstance(method, HyperField):
            return f"method={method.name} has no field of terms: take method=hyperfield"
        if method.settings.description == "learned":
            return "it needs a description, and method.description=learned has none"
        if max(options.steps_of) > method.settings.horizon:
            return (
                f"protocol.steps={max(options.steps_of)} is beyond the steps that the field was "
                f"trained on, method.horizon={method.settings.horizon}"
            )
        return super().why_not_method(options, method)

    @property
    def uses_images(self) -> bool:
        """Whether the newcomer's description is made of them."""
        return self.federation.method.settings.description != "names"

    @torch.no_grad()
    def start(self, newcomer: Newcomer) -> Onboarded:
        v = self.described(newcomer)
        t = torch.full((1,), float(newcomer.steps), dtype=v.dtype)
        return self.answered(v, self.federation.method.field(self.server_state, v, t))
