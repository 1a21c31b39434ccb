"""Which of its images a newcomer may use."""

from collections.abc import Sequence

import numpy as np

from fedpgp.federation import Federation
from fedpgp.onboarding.newcomers import Newcomer
from fedpgp.seeding import generator


def newcomers_of(federation: Federation) -> list[int]:
    """Return the clients that never train."""
    return [c for c, each in enumerate(federation.federated_split.clients) if not each.trains]


def make_newcomer(
    federation: Federation, client: int, budget: int | None, steps: int = 0
) -> Newcomer:
    """Return a client of the split as a newcomer with a budget.

    Args:
        federation: its split says which images the client has.
        client: its number.
        budget: images of each of its classes, drawn from the seed; None: all. Those of a larger
            budget hold those of a smaller one.
        steps: of its own training.
    """
    split = federation.federated_split.clients[client]
    rows = split.train_at(federation.training.rounds)
    labels = federation.dataset.train.labels[rows]
    own = tuple(int(label) for label in np.unique(labels))
    return Newcomer(
        client,
        _drawn(rows, labels, own, budget, federation.seed, client),
        own,
        split.classes,
        steps,
    )


def _drawn(
    rows: np.ndarray,
    labels: np.ndarray,
    own: Sequence[int],
    budget: int | None,
    seed: int,
    client: int,
) -> np.ndarray:
    if budget is None:
        return rows
    drawn = [
        generator(seed, "newcomer images", client, label).permutation(rows[labels == label])[
            :budget
        ]
        for label in own
    ]
    return np.sort(np.concatenate([rows[:0], *drawn]))
