"""Spectral clustering whose number of clusters is found: where the eigenvalues of the normalised
Laplacian have their largest gap (von Luxburg, Statistics and Computing 2007); the clusters are
k-means of its eigenvectors (Ng et al., NIPS 2001)."""

import numpy as np
from scipy.cluster.vq import kmeans2


def spectral_clusters(alike: np.ndarray) -> np.ndarray:
    """Return the cluster of each thing, (n,), from how alike any two are, (n, n): by the largest
    gap behind the second of the first n/2 eigenvalues, 2 clusters or more: subspaces that have
    little in common have the largest gap behind the first, which says nothing of clusters."""
    count = len(alike)
    if count < 3:
        return np.zeros(count, dtype=np.int64)
    root = 1 / np.sqrt(alike.sum(1))
    values, vectors = np.linalg.eigh(np.eye(count) - root[:, None] * alike * root)
    clusters = 2 + int(np.argmax(np.diff(values)[1 : max(2, count // 2)]))
    rows = vectors[:, :clusters]
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    _, found = kmeans2(rows, _far_apart(rows, clusters), minit="matrix")
    return np.unique(found, return_inverse=True)[1]  # an empty cluster has no number


def _far_apart(rows: np.ndarray, count: int) -> np.ndarray:
    """The first row, and then each time the one farthest from those taken, (count, …)."""
    taken = [rows[0]]
    while len(taken) < count:
        away = np.min([np.square(rows - each).sum(1) for each in taken], axis=0)
        taken.append(rows[np.argmax(away)])
    return np.stack(taken)
