"""Numbers as integers modulo 2**32, so that masks hide them and their sum is exact.

A number is divided by ``step`` and rounded: to the nearest integer, and under noise toward zero, so
that the norm of a vector never grows and what was clipped stays clipped. The error of a number is
half a step at most, or one; so is that of a mean of clients that weigh the same. With numbers of at
most R and room for n clients,

    step = (n R + 24 s) / (2**31 - 10,000)

s is the deviation of noise on the whole sum; the noise that n clients add together, of whom more
than half have to stay, is wrapped around at 16 deviations or more (less than once in 10**57).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedpgp.errors import FedPGPError

HALF = 2**31 - 10_000
"""The largest sum, in steps: a little room is left for what clipping in floating point leaves."""
LEAST_DEVIATION = 16
"""Steps that the noise of one client has at least, so that rounding it does not show."""


@dataclass(frozen=True)
class Quantiser:
    """The integers of a sum.

    Attributes:
        clients: that may add up.
        largest: R, of a number of one client.
        noise: s, deviation of the noise on the sum; 0: none.

    Example:
        >>> quantiser = Quantiser(clients=2, largest=1.0)
        >>> both = quantiser.encoded(np.array([0.25])) + quantiser.encoded(np.array([-0.75]))
        >>> float(quantiser.decoded(both)[0].round(6))
        -0.5
    """

    clients: int
    largest: float
    noise: float = 0.0

    @classmethod
    def of(cls, facts: Mapping[str, float]) -> "Quantiser":
        """From what clients are told of a sum: its fields by name, perhaps beside others."""
        return cls(int(facts["clients"]), float(facts["largest"]), float(facts["noise"]))

    @property
    def step(self) -> float:
        """What one integer stands for."""
        return (self.clients * self.largest + 24 * self.noise) / HALF

    def encoded(self, values: np.ndarray) -> np.ndarray:
        """Return numbers as integers, uint32.

        Args:
            values: float64.

        Raises:
            FedPGPError: one is larger than ``largest``, or no number.
        """
        self.check(values)
        rounded = np.trunc if self.noise > 0 else np.rint
        return rounded(values / self.step).astype(np.int64).astype(np.uint32)

    def check(self, values: np.ndarray) -> None:
        """Refuse numbers that there is no room for; as :meth:`encoded`."""
        most = float(np.abs(values).max(initial=0.0))
        if not most <= self.largest * (1 + 1e-9):  # NaN too
            raise FedPGPError(
                f"a number of its update is {most:.3g}; a secure sum has room for "
                f"{self.largest:.3g} (privacy.secure_sum_range)"
            )

    def deviation_of_one(self, fewest: int) -> float:
        """Return the deviation of the noise that one client adds, in steps, so that as few as
        ``fewest`` clients together add that of the sum.

        Raises:
            FedPGPError: it is so small that rounding it would show.
        """
        deviation = self.noise / math.sqrt(fewest) / self.step
        if deviation < LEAST_DEVIATION:
            raise FedPGPError(
                f"the noise of one client is {deviation:.2g} steps of a secure sum, and its "
                f"rounding shows below {LEAST_DEVIATION}: take more privacy.noise, or none"
            )
        return deviation

    def noise_of_one(self, normal: np.ndarray, deviation: float) -> np.ndarray:
        """Return noise of one client, uint32.

        Whole steps are added to whole steps: rounding the noise is the same as rounding the two
        together, which is no more than a Gaussian mechanism seen with fewer digits. (Sums of
        Gaussian noise that is rounded: the terms of Poisson's formula beside the first are
        exp(-2 pi^2 d^2) of it for a deviation of d steps, nothing for d = 16; Kairouz et al., ICML
        2021, arXiv 2102.06387, say the same of the discrete Gaussian.)

        Args:
            normal: standard normal numbers.
            deviation: in steps.
        """
        return np.rint(normal * deviation).astype(np.int64).astype(np.uint32)

    def decoded(self, total: np.ndarray) -> np.ndarray:
        """Return the sum that integers modulo 2**32 stand for, float64."""
        return total.view(np.int32) * self.step
