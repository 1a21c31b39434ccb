"""``global``: the newcomer answers with the global prompt."""

from fedpgp.onboarding.base import Newcomer, Onboarded, Onboarding, register


@register("global")
class GlobalPrompt(Onboarding):
    """Nothing is revealed, and nothing is learned."""

    uses_images = False
    fine_tunes = False

    def start(self, newcomer: Newcomer) -> Onboarded:
        return Onboarded()
