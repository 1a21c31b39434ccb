"""``memory``: the newcomer's own image features beside the global prompt, without training.

Tip-Adapter (Zhang et al., ECCV 2022, arXiv 2207.09519, equations 3 to 5): of the images F (n, e)
with one-hot labels L (n, C) that it may use, an image f gets

    logits = global(f) + alpha exp(-beta (1 - f F^T)) L
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedpgp.onboarding.base import Newcomer, Onboarded, Onboarding, register


@dataclass(frozen=True)
class Remembered:
    """What is added to the logits of a prompt.

    Attributes:
        keys: F, (n, e), unit norm.
        values: L, (n, C), one-hot.
        alpha, beta: weight and sharpness.
    """

    keys: Tensor
    values: Tensor
    alpha: float
    beta: float

    def __call__(self, logits: Tensor, features: Tensor) -> Tensor:
        near = torch.exp(-self.beta * (1 - features @ self.keys.mT))
        return logits + self.alpha * (near @ self.values).to(logits)


@register("memory")
class Memory(Onboarding):
    """Nothing is revealed, and nothing is trained. Its answers are no prompt's: it cannot be
    exported as class embeddings."""

    fine_tunes = False
    adjustment = Remembered

    def start(self, newcomer: Newcomer) -> Onboarded:
        if not len(newcomer.rows):
            return Onboarded()
        inputs, device = self.federation.inputs, self.federation.method.task.device
        index = torch.from_numpy(newcomer.rows).to(device)
        keys = inputs.features("train")[index]
        labels = inputs.labels("train", newcomer.classes)[index]
        values = torch.nn.functional.one_hot(labels, len(newcomer.classes)).to(keys.dtype)
        return Onboarded(adjust=Remembered(keys, values, self.options.alpha, self.options.beta))
