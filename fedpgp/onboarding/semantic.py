"""``semantic``: a term from a conditional variational autoencoder of the trained clients' terms,
the whole of Semantic-guided LoRA generation (SG-LoRA, Li et al., CVPR 2026, arXiv 2509.10535).

    c(e) = sum_k w_k e_k          w_k = softmax(cos(e, e_k) / tau) over the K clients nearest to e
    T    ~ p(x | c(e))            by :mod:`fedpgp.onboarding.term_vae`, cut back to rank b

The autoencoder is trained after the federation, from the run's seed, on each trained client's term
U V and its own c. Terms are brought to mean square 1, conditions to mean 0 and mean square 1.
``protocol.decode=mean`` decodes the mean of p(z | c), ``draw`` a draw of it, another for each
newcomer. The newcomer's own steps, if it has images, begin there.
"""

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedpgp.layers import Params
from fedpgp.onboarding.base import Newcomer, Onboarded, register
from fedpgp.onboarding.newcomers import state_bytes
from fedpgp.onboarding.term_vae import VAESize, decoded, fit, prior
from fedpgp.onboarding.terms import factors, product
from fedpgp.onboarding.topk import TopK
from fedpgp.seeding import generator

NOISE = 1.0
"""Deviation of a number of a term, whose mean square is 1."""
STEPS, RATE = 400, 3e-3
"""Of Adam: seconds on a CPU for tens of clients."""


@register("semantic")
class Semantic(TopK):
    """The newcomer reveals its description; trained clients share terms and descriptions."""

    needs_factors = True

    def start(self, newcomer: Newcomer) -> Onboarded:
        mine = self.describe(newcomer)
        state = self.state_of(self.generated(mine, newcomer.client))
        return Onboarded(state, bytes_up=mine.nbytes, bytes_down=state_bytes(state))

    def state_of(self, term: Tensor) -> dict[str, Tensor]:
        """Return the private tensors of a term (m, d)."""
        like = self.trained.terms[self._clients[0]]
        left, right = factors(term, like["U"].shape[-1])
        return {"U": left.to(like["U"]), "V": right.to(like["V"])}

    def generated(self, description: np.ndarray, client: int) -> Tensor:
        """Return the term (m, d) of a described newcomer, float64."""
        c = ((self.mixture(description) - self._centre) / self._spread)[None]
        mean, log_var = prior(self.autoencoder, c)
        if self.options.decode == "draw":
            rng = generator(self.federation.seed, "drawn term", client)
            mean = mean + (log_var / 2).exp() * torch.from_numpy(rng.standard_normal(mean.shape))
        term = decoded(self.autoencoder, mean, c)[0] * self._size
        return term.view(product(self.trained.terms[self._clients[0]]).shape)

    def mixture(self, description: np.ndarray) -> Tensor:
        """Return c(e), (n,) float64."""
        clients, weights = self.nearest(description)
        known = np.stack([self.trained.descriptions[client] for client in clients])
        return torch.from_numpy(weights @ known)

    @cached_property
    def autoencoder(self) -> Params:
        """The networks, trained on all shared terms."""
        x, c = self._terms / self._size, (self._mixtures - self._centre) / self._spread
        rng = generator(self.federation.seed, "autoencoder of terms")
        size = VAESize(x.shape[1], c.shape[1])
        return fit(x, c, size, rng, noise=NOISE, steps=STEPS, rate=RATE)

    @cached_property
    def _clients(self) -> list[int]:
        return sorted(self.trained.terms)

    @cached_property
    def _terms(self) -> Tensor:
        """The terms of those that share, (N, m d)."""
        return torch.stack([product(self.trained.terms[c]).flatten() for c in self._clients])

    @cached_property
    def _mixtures(self) -> Tensor:
        """Their conditions, (N, n)."""
        return torch.stack([self.mixture(self.trained.descriptions[c]) for c in self._clients])

    @property
    def _size(self) -> Tensor:
        return self._terms.square().mean().sqrt().clamp(min=1e-12)

    @property
    def _centre(self) -> Tensor:
        return self._mixtures.mean(0)

    @property
    def _spread(self) -> Tensor:
        return (self._mixtures - self._centre).square().mean().sqrt().clamp(min=1e-12)
