"""What a client's first update says of its images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from experiments.auditing.victim import NotTried, Victim
from fedpgp.audit.membership import inference
from fedpgp.audit.reconstruction import class_scores, invert_features
from fedpgp.protocols import ClientSplit

INVERTED = 6
"""Clients whose image features are rebuilt."""


def classes(victim: Victim) -> dict:
    """Return how well the classes of a client are told from its first update."""
    public, scale = victim.public, victim.whole.method.task.logit_scale
    scores, truth = [], []
    for own, sent, update in first_updates(victim):
        before, after = (victim.embeddings(tensors, own) for tensors in (sent, update))
        scores.append(class_scores(before, after, public[list(own.classes)], scale).numpy())
        truth.append(np.isin(np.arange(len(own.classes)), victim.labels_of(own)))
    found = inference(np.concatenate(scores), np.concatenate(truth))
    if found is None:
        raise NotTried("every client has all of its classes")
    return {"auc": found.auc, "targets": found.targets}


def features(victim: Victim) -> dict:
    """Return how near features that are rebuilt from one update come to those of the client's
    images: the mean cosine of each to the nearest image of its class.

    The attacker knows which classes the client has, and begins at the mean of other people's images
    of each, which is the guess without an update (``guess``). ``update``: from a client's first
    update, one feature a class. ``one_image``: the attacker's best case, clients with one image and
    one local step.
    """
    alone = {**victim.config, "rounds": 1, "local_epochs": 1}
    one = replace(
        victim.split,
        clients=[
            replace(own, train=own.train_at(1)[:1], phases=()) for own in victim.split.clients
        ],
    )
    found = {"update": _rebuilt(victim, list(first_updates(victim)))}
    with victim.run(alone, one) as (recorded, _):
        updates = [
            (one.clients[client], recorded.shared[0], update)
            for client, update in sorted(recorded.updates[0].items())
        ]
    return {**found, "one_image": _rebuilt(victim, updates)}


def _rebuilt(victim: Victim, updates: Sequence[tuple[ClientSplit, Mapping, Mapping]]) -> dict:
    cosines, guesses = [], []
    scale = victim.whole.method.task.logit_scale
    for own, sent, update in updates[:INVERTED]:
        labels = torch.from_numpy(victim.labels_of(own))
        images = victim.whole.inputs.features("train")[torch.from_numpy(own.train_at(1))]
        wanted = labels.unique()
        start = victim.public[list(own.classes)][wanted]
        names = sorted(sent)
        point, moved = (_flat(tensors, names, images) for tensors in (sent, update))

        def classifier(flat: Tensor, own=own, sent=sent, names=names) -> Tensor:
            return victim.embeddings(_tensors(flat, names, sent), own)

        rebuilt = invert_features(classifier, point, moved - point, wanted, start, scale)
        for label, guess, better in zip(wanted, start, rebuilt, strict=True):
            guesses.append(float((images[labels == label] @ guess).max()))
            cosines.append(float((images[labels == label] @ better).max()))
    cosine, guess = float(np.mean(cosines)), float(np.mean(guesses))
    return {"cosine": cosine, "guess": guess, "targets": len(cosines)}


def first_updates(victim: Victim) -> Iterator[tuple[ClientSplit, Mapping, Mapping]]:
    """A client's split, what it was sent in round 1 and what it sent back."""
    method = victim.whole.method
    if not victim.has_global_model:
        raise NotTried("the method shares no model")
    if method.delta_params:
        raise NotTried("the method's updates are no models")
    if not method.answers_by_cosine:
        raise NotTried("the method answers by more than one feature a class")
    if not victim.first.updates or not victim.first.updates[0]:
        raise NotTried("no update of a single client crosses the wire")
    for client, update in sorted(victim.first.updates[0].items()):
        yield victim.split.clients[client], victim.first.shared[0], update


def _flat(tensors: Mapping, names: Sequence[str], like: Tensor) -> Tensor:
    """All numbers, (d,)."""
    return torch.cat([torch.as_tensor(tensors[n]).to(like).flatten() for n in names])


def _tensors(flat: Tensor, names: Sequence[str], like: Mapping) -> dict[str, Tensor]:
    parts = flat.split([int(np.size(like[n])) for n in names])
    return {n: p.reshape(np.shape(like[n])) for n, p in zip(names, parts, strict=True)}
