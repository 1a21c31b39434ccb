"""Was an image trained on? Did a client take part?"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np

from experiments.auditing.victim import NotTried, Victim
from experiments.recorded_run import Recorded
from fedpgp.audit.bounds import epsilon_bound
from fedpgp.audit.membership import inference, likelihood_ratios
from fedpgp.federation import Federation
from fedpgp.protocols import FederatedSplit
from fedpgp.seeding import generator


def images(victim: Victim, shadows: int) -> dict:
    """Return how well images that were trained on are told from others of the same client."""
    size = len(victim.split.dataset.train)
    owned = [own.train_indices for own in victim.split.clients]
    views: dict[str, list[np.ndarray]] = {}
    zero, coins = victim.of_start(owned), []
    for number in range(shadows):
        victim.progress(number, shadows, "runs with half of the images")
        coin = generator(victim.seed, "images", number).random(size) < 0.5
        split = _only_images(victim.split, coin)
        with victim.run(victim.config, split) as (recorded, federation):
            for view, scores in _image_scores(victim, recorded, federation, owned).items():
                views.setdefault(view, []).append(np.concatenate(scores))
        coins.append(coin[np.concatenate(owned)])
    victim.progress(shadows, shadows, "runs with half of the images")
    if not sum(map(len, owned)):
        raise NotTried("no client has images to train on")
    return _figures(views, np.stack(coins), np.concatenate(zero))


def clients(victim: Victim, shadows: int) -> dict:
    """Return how well clients that took part are told from others, by the global prompt."""
    if not victim.has_global_model:
        raise NotTried("the method shares no model")
    owned = [own.train_indices for own in victim.split.clients]
    able = [c for c, rows in enumerate(owned) if len(rows) and victim.split.clients[c].trains]
    scores, coins = [], []
    zero = [float(s.mean()) for c, s in enumerate(victim.of_start(owned)) if c in able]
    for number in range(shadows):
        victim.progress(number, shadows, "runs with half of the clients")
        coin = generator(victim.seed, "clients", number).random(len(owned)) < 0.5
        if not coin[able].any():
            coin[able[0]] = True
        with victim.run(victim.config, _only_clients(victim.split, coin)) as (recorded, _):
            found = victim.scores_of(recorded.shared[-1], owned)
        scores.append([float(found[c].mean()) for c in able])
        coins.append(coin[able])
    victim.progress(shadows, shadows, "runs with half of the clients")
    return _figures({"global": scores}, np.stack(coins), np.array(zero))


def _image_scores(
    victim: Victim, recorded: Recorded, federation: Federation, owned: Sequence[np.ndarray]
) -> dict[str, list[np.ndarray]]:
    """The scores of each client's images, by what the attacker sees."""
    views = {}
    if victim.has_global_model:
        views["global"] = victim.scores_of(recorded.shared[-1], owned)
        if any(recorded.updates) and not federation.method.delta_params:
            views["server"] = _server_scores(victim, recorded, owned)
    if not victim.whole.method.shares_one_model:
        client_only = None
        if recorded.server_state:
            download = federation.server.download_for
            state = recorded.server_state
            client_only = {c: download(c, state) for c in range(len(owned))}
        views["personal"] = []
        for client, rows in enumerate(owned):
            own = victim.split.clients[client]
            (classifier,) = federation.models.personal_classifier(
                recorded.shared[-1],
                [client],
                recorded.load_state,
                [federation.class_set(own.classes)],
                client_only,
                server_round=len(recorded.shared) - 1,
            )
            views["personal"].append(victim.confidence(classifier, own, rows))
    return views


def _server_scores(
    victim: Victim, recorded: Recorded, owned: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """What each client's updates did to its images, the mean of all rounds it took part in."""
    totals = [np.zeros(len(rows)) for rows in owned]
    for sent, updates in zip(recorded.shared, recorded.updates, strict=False):
        for client, update in updates.items():
            own, rows = victim.split.clients[client], owned[client]
            after = victim.confidence(victim.classifier(update, own), own, rows)
            before = victim.confidence(victim.classifier(sent, own), own, rows)
            totals[client] += (after - before) / len(recorded.updates)
    return totals


def _figures(views: Mapping, coins: np.ndarray, start: np.ndarray) -> dict:
    """AUC and true positives by likelihood ratios, and a bound of epsilon by what each run did to
    the scores that zero-shot CLIP gives."""
    found = {}
    for view, scores in views.items():
        scores = np.asarray(scores)
        figures = inference(likelihood_ratios(scores, coins), coins)
        moved = scores if view == "server" else scores - start
        bound = epsilon_bound(np.ravel(moved), np.ravel(coins))
        if figures is not None:
            found[view] = {**asdict(figures), "bound": asdict(bound)}
    return found


def _only_images(split: FederatedSplit, there: np.ndarray) -> FederatedSplit:
    """The same clients with those of their training images that are there."""

    clients = [
        replace(
            own,
            train=own.train[there[own.train]],
            phases=tuple(replace(p, train=p.train[there[p.train]]) for p in own.phases),
        )
        for own in split.clients
    ]
    return replace(split, clients=clients)


def _only_clients(split: FederatedSplit, there: np.ndarray) -> FederatedSplit:
    """The same clients; those that are not there have no images to train on."""
    nothing = np.empty(0, dtype=np.int64)
    clients = [
        own if there[c] else replace(own, train=nothing, phases=())
        for c, own in enumerate(split.clients)
    ]
    return replace(split, clients=clients)
