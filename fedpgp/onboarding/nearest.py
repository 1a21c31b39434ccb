"""``nearest``: the term of the trained client whose description is nearest."""

from fedpgp.onboarding.base import register
from fedpgp.onboarding.topk import TopK


@register("nearest")
class Nearest(TopK):
    """:class:`fedpgp.onboarding.topk.TopK` with K = 1."""

    @property
    def count(self) -> int:
        return 1
