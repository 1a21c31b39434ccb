"""What a run has to know of its data to be resumed: classes, images, and which client owns which.

The record stands in every checkpoint. A run that is resumed or scored compares it with the data as
they are; a client's classifier takes its class names from it and needs no image.
"""

import hashlib
from collections.abc import Mapping
from itertools import groupby

import numpy as np

from fedpgp.data import Dataset, Split
from fedpgp.errors import FedPGPError
from fedpgp.protocols import ClientSplit, EvalSet, FederatedSplit, Phase

PARTS = ("train", "val", "test")
SHOWN = 5
"""Class names that a message lists."""

Record = dict[str, object]


def data_record(federated_split: FederatedSplit) -> Record:
    """The record of a data set that is split over clients, for JSON.

    Where the images are the clients' own, it says nothing of them.
    """
    dataset = federated_split.dataset
    clients = federated_split.clients
    lists = list(
        dict.fromkeys(
            [client_split.classes for client_split in clients]
            + [phase.classes for client_split in clients for phase in client_split.phases]
        )
    )
    place = {classes: i for i, classes in enumerate(lists)}
    alike = len(lists) == 1
    phases = [
        [[phase.since, place[phase.classes]] for phase in client_split.phases]
        for client_split in clients
    ]
    return ({"phases": phases} if any(phases) else {}) | {
        "class_names": list(dataset.class_names),
        "template": dataset.template
        if isinstance(dataset.template, str)
        else list(dataset.template),
        "data_sets": [[name, len(list(classes))] for name, classes in groupby(dataset.sources)],
        "base_classes": list(federated_split.base_classes),
        "clients": len(federated_split.clients),
        "classes": [list(classes) for classes in lists],
        "classes_of": None if alike else [place[client_split.classes] for client_split in clients],
        "pictures": {
            part: _summary(getattr(dataset, part))
            for part in PARTS
            if getattr(dataset, part) is not None
        },
        "split": federated_split.digest,
    }


def recorded_split(record: Record, name: str) -> FederatedSplit:
    """Classes and clients of a record, without images.

    Args:
        record: of a run.
        name: of its data set.
    """
    template = record["template"]
    names, template = (
        list(record["class_names"]),
        template if isinstance(template, str) else tuple(template),
    )
    lists = [tuple(classes) for classes in record["classes"]]
    of = record["classes_of"] or [0] * record["clients"]
    nothing = np.empty(0, dtype=np.int64)
    phases = record.get("phases") or [()] * len(of)
    client_splits = [
        ClientSplit(
            nothing,
            lists[i],
            {"local": EvalSet(nothing, lists[i])},
            phases=tuple(Phase(since, nothing, lists[j]) for since, j in own),
        )
        for i, own in zip(of, phases, strict=True)
    ]
    return FederatedSplit(
        Dataset(
            name,
            names,
            template,
            None,
            None,
            None,
            sources=tuple(n for n, size in record.get("data_sets", ()) for _ in range(size)),
        ),
        tuple(record["base_classes"]),
        (),
        client_splits,
    )


def check_same_data(run: object, before: Record | None, now: Record) -> str | None:
    """Refuses data that are not those a run was made with.

    Args:
        run: its folder, for the message.
        before: the record in its checkpoint; None where an older version wrote none.
        now: the record of the data as they are.

    Returns:
        a note where nothing can be compared, else None.

    Raises:
        FedPGPError: they differ; it says in what.
    """
    if before is None:
        return (
            f"{run} was made before a run recorded its data: it is taken that they are still the "
            "same"
        )
    if changed := data_changes(before, now):
        raise FedPGPError(
            f"the data of {run} have changed since it was started: {'; '.join(changed)}. Restore "
            "them, or start a new run"
        )
    return None


def data_changes(before: Record, now: Record) -> list[str]:
    """What is different between two records, for a person; empty when nothing is."""
    changed = _of_classes(before["class_names"], now["class_names"])
    old, new = before["pictures"], now["pictures"]
    for part in PARTS:
        changed += _changes_of(part, old.get(part), new.get(part))
    if not changed and before["template"] != now["template"]:
        changed.append("the template of the class names")
    if not changed and before["split"] != now["split"]:
        changed.append(
            "which client owns or is tested on which images (another version of fedpgp?)"
        )
    return changed


def _of_classes(before: list[str], now: list[str]) -> list[str]:
    if before == now:
        return []
    new, gone = ([name for name in a if name not in b] for a, b in ((now, before), (before, now)))
    if not new and not gone:
        return ["the order of the classes"]
    return [
        f"classes that {verb}: {_few(names)}"
        for verb, names in (("are new", new), ("are gone", gone))
        if names
    ]


def _changes_of(part: str, before: Mapping | None, now: Mapping | None) -> list[str]:
    if before == now:
        return []
    if before is None or now is None:
        return [f"{part} images that {'are new' if before is None else 'are gone'}"]
    if before["images"] != now["images"]:
        return [f"{now['images']} {part} images where there were {before['images']}"]
    return [f"{part} images of other names, sizes or labels"]


def _summary(split: Split) -> dict:
    digest = hashlib.sha256(split.signature.encode())
    digest.update(np.asarray(split.labels, dtype="<i8").tobytes())
    digest.update("\n".join(split.domains or ()).encode())
    return {"images": len(split), "sha256": digest.hexdigest()}


def _few(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" … ({len(names)})" if len(names) > SHOWN else "")
