"""What the settings of ``privacy=client`` and ``privacy=image`` share: their check."""

import math

from fedpgp.errors import FedPGPError, check_choice, check_number
from fedpgp.updates.accounting import ACCOUNTANTS

MOST_NOISE = 1e6
"""Largest noise multiplier: as far as calibration goes, and within what can be accounted."""


def check_noise(settings, *, infinite: bool = False) -> None:
    """Check what the settings of ``privacy=client`` and ``privacy=image`` share: clip, noise,
    epsilon, delta, accountant, max_epsilon, seeded_noise.

    Args:
        settings: either's.
        infinite: whether an epsilon may be infinite, which is no noise.

    Raises:
        FedPGPError: a value that cannot work, or an epsilon beside a noise.
    """
    check_number("privacy.clip", settings.clip, above=0, below=math.inf)
    check_number("privacy.noise", settings.noise, least=0, most=MOST_NOISE)
    for name in ("epsilon", "max_epsilon"):
        value = getattr(settings, name)
        if value is not None and not (infinite and value == math.inf):
            check_number(f"privacy.{name}", value, above=0, below=math.inf)
    if settings.epsilon is not None and settings.noise != type(settings).noise:
        raise FedPGPError(
            f"privacy.noise={settings.noise:g} and privacy.epsilon={settings.epsilon:g}: the noise "
            "follows from epsilon; give one of them"
        )
    if settings.delta is not None:
        check_number("privacy.delta", settings.delta, above=0, below=1)
    check_choice("privacy.accountant", settings.accountant, ACCOUNTANTS)
    check_choice("privacy.seeded_noise", settings.seeded_noise, (False, True))
