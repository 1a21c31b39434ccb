"""Spectral clustering, and the number of its clusters."""

import numpy as np

from fedpgp.spectral_clusters import spectral_clusters


def test_spectral_clusters_are_those_of_the_largest_gap():
    rng = np.random.default_rng(1)
    truth = np.array([0, 1, 2, 1, 0, 2, 2, 0, 1, 0, 1, 2])
    basis = np.linalg.qr(rng.normal(size=(9, 9)))[0]
    centres = [basis[:, 3 * c : 3 * c + 3] for c in range(3)]
    bases = [np.linalg.qr(centres[c] + 0.05 * rng.normal(size=(9, 3)))[0] for c in truth]
    alike = np.array([[np.square(a.T @ b).sum() / 3 for b in bases] for a in bases])
    walk = np.eye(12) - alike / alike.sum(1, keepdims=True)  # the same eigenvalues
    values = np.sort(np.linalg.eigvals(walk).real)
    gaps = [values[k + 1] - values[k] for k in range(1, 6)]
    found = spectral_clusters(alike)
    assert (
        len(set(found.tolist()))
        == 2 + int(np.argmax(gaps))
        == len(set(zip(found, truth, strict=True)))
    )
    assert spectral_clusters(np.ones((2, 2))).tolist() == [0, 0]
