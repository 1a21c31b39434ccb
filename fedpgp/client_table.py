"""Who owns how many images of which class, a row a client."""

import numpy as np

from fedpgp.protocols import FederatedSplit


def client_table(federated_split: FederatedSplit) -> list[dict]:
    """A row a client: id, domain, numbers of train and test images, whether it trains, and how
    many of which class (nobody else's business where the images are the clients' own).
    """
    dataset = federated_split.dataset
    names = dataset.class_names

    def counts(labels: np.ndarray) -> dict[str, int]:
        ids, how_many = np.unique(labels, return_counts=True)
        return {names[i]: int(n) for i, n in zip(ids, how_many, strict=True)}

    return [
        {
            "id": client,
            "domain": client_split.domain,
            "train_images": len(client_split.train),
            "test_images": len(client_split.test),
            "trains": client_split.trains,
        }
        | (
            {}
            if federated_split.private_data
            else {
                "train_counts": counts(dataset.train.labels[client_split.train]),
                "test_counts": counts(dataset.test.labels[client_split.test]),
            }
        )
        for client, client_split in enumerate(federated_split.clients)
    ]
