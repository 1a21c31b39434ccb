"""``cluster``: trained clients are clustered by the subspaces of their terms; the newcomer gets the
term of the cluster that its own first steps point to.

Of a client's term T_i = U_i V_i let Q_i (m, b) be an orthonormal basis of its columns. Then

    a_ij   = |Q_i^T Q_j|_F^2 / b                        alike: 1 is the same subspace, 0 none of it
    root   = mean of all T_i
    leaf_c = mean over the cluster of T_i - root,  the newcomer's term: root + leaf_c, cut to rank b

The clusters are those of :mod:`fedpgp.spectral_clusters`. The newcomer trains its own term for its
steps and sends Q; its cluster is the one with the largest mean a. Without images or steps it gets
the root.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch

from fedpgp.client_models import State
from fedpgp.onboarding.base import Newcomer, Onboarded, Onboarding, register
from fedpgp.onboarding.fine_tune import fine_tune
from fedpgp.onboarding.newcomers import state_bytes
from fedpgp.onboarding.terms import blend, product
from fedpgp.spectral_clusters import spectral_clusters


@register("cluster")
class Cluster(Onboarding):
    """Trained clients share their terms; the newcomer reveals the subspace of its first steps."""

    needs_terms = True
    needs_factors = True

    def start(self, newcomer: Newcomer) -> Onboarded:
        if not (newcomer.steps and len(newcomer.rows)):
            return self._with(self._terms, 0)
        (own,) = fine_tune(self.federation, self.trained, [newcomer], [None], self.options)
        mine = self._basis(own)
        chosen = self.route(mine)
        members = [t for t, c in zip(self._terms, self.clusters, strict=True) if c == chosen]
        return self._with(members, mine.nbytes)

    def _with(self, terms: Sequence[State], told: int) -> Onboarded:
        """The mean of some terms, which is the root and what the cluster adds to it."""
        state = blend(terms, np.full(len(terms), 1 / len(terms)))
        return Onboarded(state, bytes_up=told, bytes_down=state_bytes(state))

    def route(self, basis: np.ndarray) -> int:
        """Return the cluster whose members' subspaces are most like this one, (m, b)."""
        alike = np.array([likeness(basis, each) for each in self._bases])
        return int(
            np.argmax([alike[self.clusters == c].mean() for c in range(self.clusters.max() + 1)])
        )

    @cached_property
    def clusters(self) -> np.ndarray:
        """The cluster of each client that shares, (clients,), in ascending order of clients."""
        alike = np.array([[likeness(a, b) for b in self._bases] for a in self._bases])
        return spectral_clusters(alike)

    @cached_property
    def _terms(self) -> list[State]:
        return [self.trained.terms[client] for client in sorted(self.trained.terms)]

    @cached_property
    def _bases(self) -> list[np.ndarray]:
        return [self._basis(state) for state in self._terms]

    @staticmethod
    def _basis(state: State) -> np.ndarray:
        """An orthonormal basis of the columns of a term, (m, b)."""
        rank = state["U"].shape[-1]
        return torch.linalg.svd(product(state), full_matrices=False)[0][:, :rank].numpy()


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Return |Q_i^T Q_j|_F^2 / b of two orthonormal bases (m, b)."""
    return float(np.square(one.T @ other).sum() / one.shape[1])
