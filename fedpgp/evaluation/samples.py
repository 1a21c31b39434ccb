"""Test images for a report, with what a client's personal model says of them."""

import io
from collections.abc import Mapping, Sequence

import torch

from fedpgp.arrays import Arrays
from fedpgp.client_models import LoadState
from fedpgp.evaluation.evaluator import Evaluator, allowed, eval_key
from fedpgp.seeding import generator

SAMPLE_SIDE = 256
"""Longest side of a sample image in pixels: a report shows it small, and a photograph's
megabytes do not travel."""


@torch.no_grad()
def samples(
    evaluator: Evaluator,
    shared: Arrays,
    clients: Sequence[int],
    load_state: LoadState,
    per_client: int,
    seed: int,
    client_only: Mapping[int, Arrays] | None = None,
    *,
    server_round: int,
) -> list[dict]:
    """A few of each client's own test images with its personal model's answers,
    right and wrong ones in turn.

    Returns:
        dicts of ``client, domain, label, predicted, correct, confidence`` (0..1) and ``png``
        (bytes); none of images that are the clients' own.
    """
    federated_split, inputs, models = evaluator.federated_split, evaluator.inputs, evaluator.models
    found = []
    for client in [] if federated_split.private_data else clients:
        client_split = federated_split.clients[client]
        own = client_split.local_eval_set
        if own is None or own.since > server_round or not len(own.indices):
            continue
        classes = evaluator.method.task.class_set(own.classes)
        (classifier,) = models.personal_classifier(
            shared, [client], load_state, [classes], client_only, server_round=server_round
        )
        logits = allowed(own, evaluator.answer(eval_key(own), classifier, own.indices))
        confidence, predicted = (t.cpu().numpy() for t in logits.softmax(-1).max(-1))
        truth = inputs.labels("test", classes.ids)[own.indices].cpu().numpy()
        order = generator(seed, "samples", client).permutation(len(own.indices))
        right, wrong = (
            [i for i in order if (predicted[i] == truth[i]) == hit] for hit in (True, False)
        )
        chosen = [i for pair in zip(right, wrong, strict=False) for i in pair]
        chosen += [i for i in order if i not in chosen]
        for i in chosen[:per_client]:
            buffer = io.BytesIO()
            image = inputs.dataset.test.image(int(own.indices[i]))
            image.thumbnail((SAMPLE_SIDE, SAMPLE_SIDE))
            image.save(buffer, format="PNG")
            found.append(
                {
                    "client": int(client),
                    "domain": client_split.domain,
                    "label": classes.names[truth[i]],
                    "predicted": classes.names[predicted[i]],
                    "correct": bool(predicted[i] == truth[i]),
                    "confidence": float(confidence[i]),
                    "png": buffer.getvalue(),
                }
            )
    return found
