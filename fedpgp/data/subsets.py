"""Few-shot samples, and the two halves of the classes."""

from collections.abc import Sequence

import numpy as np

from fedpgp.errors import FedPGPError, unknown
from fedpgp.seeding import generator

CLASS_ORDERS = ("label", "alphabet")


def few_shot(labels: Sequence[int] | np.ndarray, shots: int, seed: int) -> np.ndarray:
    """``shots`` images of each label, drawn without repetition; all images of a label that
    has fewer (as CoOp does).

    For images split by domain, pass one key a class *and domain* as labels.

    Args:
        labels: (N,) labels, or any integer keys.
        shots: images a label.
        seed: of the draw.

    Returns:
        Ascending rows, int64.

    Raises:
        FedPGPError: fewer than 1 shot, or more than the largest class has.
    """
    labels = np.asarray(labels)
    if shots < 1:
        raise FedPGPError(f"shots={shots}: a class needs at least 1 image; shots=null takes all")
    keys, counts = np.unique(labels, return_counts=True)
    if len(counts) and shots > counts.max():
        raise FedPGPError(
            f"shots={shots}, but no class has more than {counts.max()} training images; "
            "shots=null takes all"
        )
    rows = []
    for key in keys:
        mine = np.flatnonzero(labels == key)
        # A generator of its own: a class's sample does not hang on which other classes take part.
        rows.append(generator(seed, "few-shot", int(key)).permutation(mine)[:shots])
    return np.sort(np.concatenate(rows)) if rows else np.empty(0, dtype=np.int64)


def few_shot_as_they_came(
    labels: np.ndarray, starts: Sequence[int], shots: int, seed: int
) -> np.ndarray:
    """``shots`` images of each label among images that came one batch after the other: what was
    drawn from those before stays, and a label that had too few takes more from those that are new.

    Args:
        labels: (N,) labels.
        starts: first row of each batch, ascending, and N.
        shots: images a label.
        seed: of the draws.

    Returns:
        Ascending rows, int64.
    """
    kept: dict[int, list[int]] = {}
    for start, stop in zip(starts, starts[1:], strict=False):
        for key in np.unique(labels[start:stop]).tolist():
            mine = kept.setdefault(key, [])
            rows = start + np.flatnonzero(labels[start:stop] == key)
            drawn = generator(seed, "few-shot", key).permutation(rows)
            mine += drawn[: shots - len(mine)].tolist()
    return np.sort([row for mine in kept.values() for row in mine]).astype(np.int64)


def base_novel(class_names: Sequence[str], order: str = "label") -> tuple[list[int], list[int]]:
    """The first half of the classes (rounded up) is base, the second half novel.

    Args:
        class_names: in label order.
        order: ``label`` (CoOp: by label) or ``alphabet`` (FLiP: by class name as in a
            prompt, upper case first).

    Returns:
        Labels of the base classes and of the novel ones, in that order.

    Raises:
        FedPGPError: unknown order; fewer than two classes.
    """
    if order not in CLASS_ORDERS:
        raise FedPGPError(unknown("protocol.class_order", order, CLASS_ORDERS))
    if len(class_names) < 2:
        raise FedPGPError(
            f"base and novel classes need at least 2 classes, there is {len(class_names)}"
        )
    ids = list(range(len(class_names)))
    if order == "alphabet":
        ids.sort(key=lambda i: class_names[i].replace("_", " "))
    half = (len(ids) + 1) // 2
    return ids[:half], ids[half:]
