"""``prior``: the global prompt, and what the newcomer knows of its classes, without any image.

Of the C classes to choose among the newcomer has the names of n. Its images are of another class
with probability e = ``protocol.others``. By Bayes' rule for a label shift (Saerens et al., Neural
Computation 2002; the logit adjustment of Menon et al., ICLR 2021), from a uniform prior:

    logits_c = global(f)_c + log pi_c,    pi_c = (1 - e) / n of its classes, e / (C - n) of others
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpgp.onboarding.base import Newcomer, Onboarded, Onboarding, register


@dataclass(frozen=True, eq=False)
class ClassPrior:
    """The log of a prior over the classes, (C,)."""

    log: Tensor

    def __call__(self, logits: Tensor, features: Tensor) -> Tensor:
        return logits + self.log.to(logits)


@register("prior")
class Prior(Onboarding):
    """Nothing is revealed, and nothing is trained."""

    uses_images = False
    fine_tunes = False
    adjustment = ClassPrior

    def start(self, newcomer: Newcomer) -> Onboarded:
        own = torch.tensor([label in newcomer.labels for label in newcomer.classes])
        others, count = self.options.others, int(own.sum())
        if count == len(own):
            return Onboarded()
        log = torch.full(own.shape, math.log(others / (len(own) - count)), dtype=torch.float64)
        log[own] = math.log((1 - others) / count)

        return Onboarded(adjust=ClassPrior(log))
