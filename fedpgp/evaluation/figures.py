"""The figures of an evaluation: the one list that evaluation, run folders, reports
and docs/protocols.md read.

A figure is measured for each of three models: zero-shot CLIP, the global prompt, each client's own.
A protocol that does not have a figure leaves it None. A new figure is a line of :data:`FIGURES` and
its computation in :mod:`fedpgp.evaluation.metrics` or :mod:`fedpgp.evaluation.detection`.
"""

from dataclasses import dataclass

MODELS = {"zero_shot": "zero-shot", "global": "global prompt", "personal": "personal prompt"}
"""What is evaluated: key in files -> name in tables."""


@dataclass(frozen=True)
class Figure:
    """One figure of one model, over all clients.

    Attributes:
        name: key in ``summary.json``, ``metrics.jsonl`` and ``clients.csv``.
        title: what stands above its column.
        meaning: what it is, after its title and a colon; the list is read from the top.
        caption: name of its chart.
        phrase: name inside a sentence; empty: headlines and the terminal leave it out.
        unit: of its values.
        measured: accuracy on a set of images, as a client's reply has it.
        beside: a client's reply has it too, beside its accuracies; the rest is computed of replies.
        per_client: a single client has it too (a column of ``clients.csv``).
        lower_is_better: a smaller value is the better one.
    """

    name: str
    title: str
    meaning: str
    caption: str = ""
    phrase: str = ""
    unit: str = "%"
    measured: bool = False
    beside: bool = False
    per_client: bool = False
    lower_is_better: bool = False


_ALL = (
    Figure(
        "local",
        "local",
        "each client’s own test images",
        caption="Local accuracy",
        phrase="local accuracy",
        measured=True,
        per_client=True,
    ),
    Figure(
        "base",
        "base",
        "test images of all trained classes",
        caption="Base accuracy",
        phrase="base accuracy",
        measured=True,
        per_client=True,
    ),
    Figure(
        "novel",
        "novel",
        "classes that no client has seen",
        caption="Novel accuracy",
        phrase="novel accuracy",
        measured=True,
        per_client=True,
    ),
    Figure("hm3", "HM", "the harmonic mean of the three", phrase="harmonic mean", per_client=True),
    Figure("hm2", "HM2", "of base and novel", per_client=True),
    Figure(
        "unseen",
        "unseen",
        "what no client trained on",
        caption="Unseen",
        phrase="accuracy on unseen data",
        measured=True,
        per_client=True,
    ),
    Figure("cm", "CM", "the mean of local and HM2 (FedMGP)"),
    Figure(
        "f1_macro",
        "F1",
        "macro F1 on local’s images: mean over the classes that images or answers have",
        caption="Macro F1",
        beside=True,
    ),
    Figure(
        "balanced",
        "balanced",
        "accuracy on local’s images, each of their classes counting alike",
        beside=True,
    ),
    Figure(
        "ece",
        "ECE",
        "expected calibration error (Guo et al., ICML 2017)",
        caption="Calibration error",
        beside=True,
        lower_is_better=True,
    ),
    Figure(
        "auroc",
        "AUROC",
        "known images among those of unknown classes, by maximum softmax",
        caption="Known among unknown (AUROC)",
        beside=True,
    ),
    Figure(
        "fpr95",
        "FPR95",
        "unknown taken for known where 95 % of the known are, by maximum softmax",
        beside=True,
        lower_is_better=True,
    ),
    Figure("auroc_energy", "AUROC energy", "AUROC by energy (Liu et al., 2020)", beside=True),
    Figure(
        "fpr95_energy",
        "FPR95 energy",
        "FPR95 by energy",
        beside=True,
        lower_is_better=True,
    ),
    Figure(
        "worst10",
        "worst 10 %",
        "mean local accuracy of the worst tenth of the clients",
        caption="Worst tenth of the clients",
    ),
    Figure(
        "val", "validation", "accuracy on validation images, with `protocol.selection=validation`"
    ),
)

FIGURES = {figure.name: figure for figure in _ALL}
"""Name -> figure, in the order of tables."""

_OF_TASKS = (
    Figure("last", "last", "mean over the tasks, after the last one", phrase="accuracy at the end"),
    Figure(
        "average",
        "average",
        "mean over time of the mean over the tasks so far",
        phrase="average accuracy over the tasks",
    ),
    Figure(
        "forgetting",
        "forgetting",
        "what a task has lost at the end since its best",
        phrase="forgetting",
        lower_is_better=True,
    ),
    Figure("backward", "backward", "what a task has gained since it was learned"),
    Figure("transfer", "transfer", "mean over the tasks that have not come yet"),
)

LIFELONG = {figure.name: figure for figure in _OF_TASKS}
"""Name -> figure of a run over several tasks (:mod:`fedpgp.evaluation.lifelong`); they stand in
``summary.json`` alone."""

COLUMNS = {**FIGURES, **LIFELONG}
"""Name -> every figure that a table may have a column of."""

ACCURACIES = tuple(figure.name for figure in _ALL if figure.measured)
"""Figures that are measured on a set of images of their own."""

BESIDE = tuple(figure.name for figure in _ALL if figure.beside)
"""Figures that a client's reply has beside its accuracies."""

UNCOUNTED = tuple(name for name in BESIDE if name != "ece")
"""Figures whose bytes ``bytes_up`` leaves out. No node with images of its own tells them, and
published bytes are of runs that are older than they."""

CLIENT_FIGURES = tuple(figure.name for figure in _ALL if figure.per_client)
"""Figures that a single client has."""

GROUPED = {"domains": "", "domains_base": " base", "domains_novel": " novel", "datasets": ""}
"""Accuracies that are one number a domain or data set -> what their column's title ends with."""

EVAL_SETS = (*ACCURACIES, "val")
"""Names that an eval set may have, beside one of :data:`BY_NAME`."""

BY_NAME = ("domains.", "datasets.", "tasks.")
"""What the name of an eval set of one domain, data set, group of classes or task begins with."""

UNSEEN = {
    "leave_one_domain_out": ("the domain left out", "the domain that was left out"),
    "unseen_clients": ("clients that never trained", "the clients that never trained"),
    "cross_dataset": ("the other data sets", "the other data sets, each counting alike"),
    "cross_domain": (
        "the variants of the data set",
        "the variants of the data set, each counting alike",
    ),
}
"""Protocol -> what its ``unseen`` is: (in a sentence, as a meaning)."""
