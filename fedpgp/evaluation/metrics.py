"""What is measured: local, base and novel accuracy of a client, F1, calibration, harmonic means,
and the summary over clients.

All figures are in percent. A figure that a protocol does not have is None (and absent from
a client's own figures).
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from torch import Tensor

from fedpgp.errors import FedPGPError
from fedpgp.evaluation.figures import ACCURACIES, BESIDE, MODELS
from fedpgp.prefixes import strip_prefix

LAST_FEW = 5
ECE_BINS = 15


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Fraction of images whose highest logit is the right class, in percent; logits (n,
    C), labels (n,), n > 0."""
    return 100.0 * (logits.argmax(-1) == labels).cpu().double().mean().item()


def calibration_error(logits: Tensor, labels: Tensor, bins: int = ECE_BINS) -> float:
    """Expected calibration error in percent: the mean gap of confidence and accuracy over
    equal-width confidence bins (Guo et al., ICML 2017), weighted by the images in a bin; logits (n,
    C), labels (n,), n > 0."""
    check_numbers(logits)
    probability, predicted = logits.cpu().double().softmax(-1).max(-1)
    confidence, correct = probability.numpy(), (predicted == labels.cpu()).double().numpy()
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(which, confidence - correct, minlength=bins)
    return 100.0 * float(np.abs(gaps).sum() / len(confidence))


def macro_f1(logits: Tensor, labels: Tensor) -> float:
    """Mean over classes of F1 = 2 hits / (images + answers) in percent, over the classes that some
    image or some answer has; logits (n, C), labels (n,), n > 0."""
    hits, images, answers = _counts(logits, labels)
    there = images + answers > 0
    return 100.0 * float((2.0 * hits[there] / (images + answers)[there]).mean())


def balanced_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Mean over the images' classes of the fraction of their images that are answered right, in
    percent; logits (n, C), labels (n,), n > 0."""
    hits, images, _ = _counts(logits, labels)
    return 100.0 * float((hits[images > 0] / images[images > 0]).mean())


def answer_figures(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return ``f1_macro``, ``balanced`` and ``ece`` of answers; logits (n, C), labels (n,),
    n > 0."""
    return {
        "f1_macro": macro_f1(logits, labels),
        "balanced": balanced_accuracy(logits, labels),
        "ece": calibration_error(logits, labels),
    }


def check_numbers(logits: Tensor) -> None:
    """Refuse logits that are NaN."""
    if logits.isnan().any():
        raise FedPGPError("the model's logits are NaN: its prompt is not usable")


def _counts(logits: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right answers, images and answers of each class, (C,) each."""
    answers, labels, classes = logits.argmax(-1).cpu(), labels.cpu(), logits.shape[-1]
    right = labels[answers == labels]
    hits, images, said = (
        np.bincount(each.numpy(), minlength=classes) for each in (right, labels, answers)
    )
    return hits, images, said


def harmonic_mean(*values: float | None) -> float | None:
    """Harmonic mean; 0 if a value is 0, None if a value is None."""
    if any(value is None for value in values):
        return None
    return 0.0 if min(values) <= 0 else len(values) / sum(1.0 / value for value in values)


def client_figures(row: Mapping, model: str) -> dict[str, float | None]:
    """A client's figures (:data:`fedpgp.evaluation.figures.CLIENT_FIGURES`) under one model, from
    its flat row (``"personal.local"`` …).

    ``unseen`` is its own figure of that name, or the mean over the data sets it was tested on
    (``"personal.datasets.X"``).
    """
    local, base, novel, unseen = (row.get(f"{model}.{figure}") for figure in ACCURACIES)
    return {
        "local": local,
        "base": base,
        "novel": novel,
        "hm3": harmonic_mean(local, base, novel),
        "hm2": harmonic_mean(base, novel),
        "unseen": _mean(strip_prefix(f"{model}.datasets.", row).values())
        if unseen is None
        else unseen,
    }


def summarize(rows: Sequence[Mapping]) -> dict[str, dict | None]:
    """The accuracy block of ``summary.json``.

    Args:
        rows: one a client: ``id``, ``domain`` and flat figures ``"<model>.<figure>"`` with model in
            zero_shot, global, personal.

    Returns:
        model -> None where no client has a figure of it, else ``local, base, novel, unseen`` (means
        over the clients that have it), ``hm3, hm2`` (harmonic means of those means), ``cm`` =
        (local + hm2) / 2 (FedMGP), the means of what replies have beside accuracies
        (:data:`fedpgp.evaluation.figures.BESIDE`), ``worst10`` (mean local accuracy of the worst
        tenth of the clients, at least one), ``domains`` (what was measured on that domain, else the
        mean local accuracy of its clients), ``domains_base`` and ``domains_novel`` (of its
        clients), ``datasets`` (accuracy on each target), ``val`` (on validation images) and
        ``std_clients`` (sample standard deviation over clients).
    """
    return {model: _summarize(rows, model) for model in MODELS}


def _summarize(rows: Sequence[Mapping], model: str) -> dict | None:
    if not any(name.startswith(f"{model}.") for row in rows for name in row):
        return None
    clients = [client_figures(row, model) for row in rows]
    means = {figure: _mean(c[figure] for c in clients) for figure in ACCURACIES}
    local = sorted(c["local"] for c in clients if c["local"] is not None)

    def of_domains(figure: str) -> dict[str, float]:
        found: dict[str, list] = {}
        for row, figures in zip(rows, clients, strict=True):
            if row.get("domain") is not None and figures[figure] is not None:
                found.setdefault(row["domain"], []).append(figures[figure])
        return {domain: _mean(values) for domain, values in found.items()}

    def measured(kind: str) -> dict[str, float]:
        own = [strip_prefix(f"{model}.{kind}.", row) for row in rows]
        names = dict.fromkeys(name for figures in own for name in figures)
        return {name: _mean(figures.get(name) for figures in own) for name in names}

    return {
        **_with_means(means),
        **{name: _mean(row.get(f"{model}.{name}") for row in rows) for name in BESIDE},
        "worst10": _mean(local[: math.ceil(len(local) / 10)]),
        "domains": {**of_domains("local"), **measured("domains")} or None,
        "domains_base": of_domains("base") or None,
        "domains_novel": of_domains("novel") or None,
        "datasets": measured("datasets") or None,
        "val": _mean(row.get(f"{model}.val") for row in rows),
        "std_clients": {
            name: _std(c[name] for c in clients) for name in (*ACCURACIES, "hm3", "hm2")
        },
    }


def standard_errors(rows: Sequence[Mapping], clients: int) -> dict[str, dict | None]:
    """Return the standard errors of :func:`summarize`'s means, for each model: of ``local,
    base, novel, unseen``, in percent. None where a mean is of fewer than two clients.

    Of a sample without replacement: s / sqrt(n) * sqrt(1 - n / N) (Cochran, Sampling Techniques,
    1977, eq. 2.20), with the sample standard deviation s.

    Args:
        rows: as in :func:`summarize`, of the n clients that were drawn.
        clients: N, of which they were drawn.
    """

    def error(values: Iterable[float | None]) -> float | None:
        values = _present(values)
        if len(values) < 2:
            return None
        rest = max(0.0, 1 - len(values) / clients)
        return _std(values) * math.sqrt(rest / len(values))

    found: dict[str, dict | None] = {}
    for model in MODELS:
        figures = [client_figures(row, model) for row in rows]
        errors = {name: error(each[name] for each in figures) for name in ACCURACIES}
        found[model] = errors if any(value is not None for value in errors.values()) else None
    return found


def _with_means(figures: Mapping[str, float | None]) -> dict[str, float | None]:
    """The figures, and the harmonic means and CM made of them."""
    local, base, novel = (figures[name] for name in ("local", "base", "novel"))
    hm2 = harmonic_mean(base, novel)
    return {
        **figures,
        "hm3": harmonic_mean(local, base, novel),
        "hm2": hm2,
        "cm": None if hm2 is None or local is None else (local + hm2) / 2,
    }


def is_evaluated(server_round: int, rounds: int, every: int, selection: str) -> bool:
    """Whether a round (from 1) is followed by an evaluation: every ``every`` rounds (0:
    none of them), after the last of ``rounds``, and with ``selection=last_five`` after
    each of the last five."""
    few = LAST_FEW if selection == "last_five" else 1
    return server_round > rounds - few or (every > 0 and server_round % every == 0)


def select(records: Sequence[Mapping], selection: str) -> tuple[dict[str, dict | None], list[int]]:
    """The accuracy that a run reports, and the rounds it is of.

    Args:
        records: one an evaluation, oldest first: ``round`` and a block a model, as
            :func:`summarize` makes them.
        selection: ``last``; ``last_five``: the mean of the last five rounds (fewer where there are
            fewer), figure by figure, harmonic means of the means; ``validation``: the evaluation
            with the highest mean ``val`` of the personal models, the earliest of equals.
    """
    trained = [record for record in records if record["round"] > 0] or list(records)
    chosen = trained[-1:]
    if selection == "last_five":
        last = trained[-1]["round"] if trained else 0
        chosen = [record for record in trained if record["round"] > last - LAST_FEW]
    elif selection == "validation":
        chosen = (
            [max(trained, key=lambda r: ((r.get("personal") or {}).get("val") or 0.0, -r["round"]))]
            if trained
            else []
        )
    return mean_accuracy(chosen), [record["round"] for record in chosen]


def mean_accuracy(records: Sequence[Mapping]) -> dict[str, dict | None]:
    """The mean of several accuracies, block by block and figure by figure (harmonic means of the
    means); None where one of them has none."""
    return {model: _mean_block([record.get(model) for record in records]) for model in MODELS}


def _mean_block(blocks: Sequence[Mapping | None]) -> dict | None:
    if not blocks or any(block is None for block in blocks):
        return None
    if len(blocks) == 1:
        return dict(blocks[0])

    def mean(values: Iterable) -> object:
        values = _present(values)
        if values and isinstance(values[0], Mapping):
            return {
                key: mean(value.get(key) for value in values)
                for key in dict.fromkeys(k for v in values for k in v)
            }
        return _mean(values)

    block = {key: mean(block[key] for block in blocks) for key in blocks[0]}
    return {**block, **_with_means({name: block[name] for name in ACCURACIES})}


def _present(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Iterable[float | None]) -> float | None:
    values = _present(values)
    return float(np.mean(values)) if values else None


def _std(values: Iterable[float | None]) -> float | None:
    values = _present(values)
    if not values:
        return None
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
