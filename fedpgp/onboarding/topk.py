"""``topk``: a weighted mean of the terms of the K trained clients whose descriptions are nearest.

The first half of SG-LoRA (Li et al., CVPR 2026, arXiv 2509.10535), which goes on to draw a term
from a conditional VAE.

    w_k = exp(cos(e, e_k) / tau) / sum_j exp(cos(e, e_j) / tau)    over the K nearest clients
    T   = sum_k w_k U_k V_k,  cut back to rank b

The newcomer's own steps, if it has images, begin there.
"""

import numpy as np

from fedpgp.onboarding.base import Newcomer, Onboarded, Onboarding, register
from fedpgp.onboarding.newcomers import state_bytes
from fedpgp.onboarding.terms import blend


@register("topk")
class TopK(Onboarding):
    """The newcomer reveals its description; trained clients share terms and descriptions."""

    needs_terms = True
    needs_description = True

    @property
    def count(self) -> int:
        """K, at most as many as there are."""
        return min(self.options.top_k, len(self.trained.terms))

    def start(self, newcomer: Newcomer) -> Onboarded:
        mine = self.describe(newcomer)
        clients, weights = self.nearest(mine)
        state = blend([self.trained.terms[client] for client in clients], weights)
        return Onboarded(state, bytes_up=mine.nbytes, bytes_down=state_bytes(state))

    def nearest(self, description: np.ndarray) -> tuple[list[int], np.ndarray]:
        """Return the K clients nearest to a description, and their weights (K,); of equals the
        first."""
        clients = sorted(self.trained.terms)
        known = np.stack([self.trained.descriptions[client] for client in clients])
        lengths = np.linalg.norm(known, axis=1) * np.linalg.norm(description)
        cosines = known @ description / lengths
        order = np.argsort(-cosines, kind="stable")[: self.count]
        powers = np.exp((cosines[order] - cosines[order[0]]) / self.options.tau)
        return [clients[i] for i in order], powers / powers.sum()
