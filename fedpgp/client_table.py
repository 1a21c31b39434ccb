"""Who owns how many images of which class, a row a client."""

from collections.abc import Iterable, Mapping

import numpy as np

from fedpgp.protocols import FederatedSplit


def client_table(
    federated_split: FederatedSplit, clients: Iterable[int] | None = None
) -> list[dict]:
    """A row for each of these clients (None: all): id, domain, numbers of train and test images,
    whether it trains, and how many of which class (nobody else's business where the images are the
    clients' own).

    A client whose training images change has ``phases`` too: from which round on it trains on how
    many; ``train_images`` counts those of all rounds.
    """
    dataset = federated_split.dataset
    names = dataset.class_names

    def counts(labels: np.ndarray) -> dict[str, int]:
        found: dict[str, int] = {}
        for label in sorted(labels.tolist()):
            name = names[label]  # a published list may have a name twice
            found[name] = found.get(name, 0) + 1
        return found

    everyone = federated_split.clients
    numbers = range(len(everyone)) if clients is None else clients
    chosen = ((client, everyone[client]) for client in numbers)
    return [
        {
            "id": client,
            "domain": client_split.domain,
            "train_images": len(client_split.train_indices),
            "test_images": len(client_split.test),
            "trains": client_split.trains,
        }
        | (
            {}
            if federated_split.private_data
            else {
                "train_counts": counts(dataset.train.labels[client_split.train_indices]),
                "test_counts": counts(dataset.test.labels[client_split.test]),
            }
        )
        | (
            {
                "phases": [
                    {"since": since, "train_images": len(client_split.train_at(since))}
                    for since in (0, *(phase.since for phase in client_split.phases))
                ]
            }
            if client_split.phases
            else {}
        )
        for client, client_split in chosen
    ]


def train_images_at(row: Mapping, server_round: int) -> int | None:
    """Return how many images the client of a row trains on in a round; None where nobody else
    knows."""
    if "phases" not in row:
        return row["train_images"]
    begun = [each["train_images"] for each in row["phases"] if each["since"] <= server_round]
    return begun[-1] if begun else row["train_images"]
