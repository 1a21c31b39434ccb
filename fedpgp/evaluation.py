"""What is measured: local, base and novel accuracy of a client, calibration, harmonic means, and the summary over
clients.

All figures are in percent. A figure that a protocol does not have is None (and absent from a client's own figures).
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from torch import Tensor

from fedpgp.errors import FedPGPError

MODELS = ("zero_shot", "global", "personal")
FIGURES = ("local", "base", "novel")
ECE_BINS = 15


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of images whose highest logit is the right class, in percent; logits (n, C), labels (n,), n > 0."""
    return 100.0 * (logits.argmax(-1) == labels).cpu().double().mean().item()


def calibration_error(logits: Tensor, labels: Tensor, bins: int = ECE_BINS) -> float:
    """Expected calibration error in percent: the mean gap of confidence and accuracy over equal-width confidence bins
    (Guo et al., ICML 2017), weighted by the images in a bin; logits (n, C), labels (n,), n > 0."""
    if logits.isnan().any():
        raise FedPGPError("the model's logits are NaN: its prompt is not usable")
    probability, predicted = logits.cpu().double().softmax(-1).max(-1)
    confidence, correct = probability.numpy(), (predicted == labels.cpu()).double().numpy()
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(which, confidence - correct, minlength=bins)
    return 100.0 * float(np.abs(gaps).sum() / len(confidence))


def harmonic_mean(*values: float | None) -> float | None:
    """Harmonic mean; 0 if a value is 0, None if a value is None."""
    if any(value is None for value in values):
        return None
    return 0.0 if min(values) <= 0 else len(values) / sum(1.0 / value for value in values)


def client_figures(row: Mapping, model: str) -> dict[str, float | None]:
    """A client's local, base, novel, hm3, hm2 under one model, from its flat row (``"personal.local"`` …)."""
    local, base, novel = (row.get(f"{model}.{figure}") for figure in FIGURES)
    return {
        "local": local,
        "base": base,
        "novel": novel,
        "hm3": harmonic_mean(local, base, novel),
        "hm2": harmonic_mean(base, novel),
    }


def summarize(rows: Sequence[Mapping]) -> dict[str, dict | None]:
    """The accuracy block of ``summary.json``.

    Args:
        rows: one a client: ``id``, ``domain`` and flat figures ``"<model>.<figure>"`` with model in zero_shot, global,
            personal.

    Returns:
        model -> None where no client has a figure of it, else ``local, base, novel`` (means over clients), ``hm3, hm2``
        (harmonic means of those means), ``cm`` = (local + hm2) / 2 (FedMGP), ``ece``, ``worst10`` (mean local accuracy
        of the worst tenth of the clients, at least one), ``domains`` (mean local accuracy of each domain's clients) and
        ``std_clients`` (sample standard deviation over clients).
    """
    return {model: _summarize(rows, model) for model in MODELS}


def _summarize(rows: Sequence[Mapping], model: str) -> dict | None:
    if not any(f"{model}.{figure}" in row for row in rows for figure in FIGURES):
        return None
    clients = [client_figures(row, model) for row in rows]
    means = {figure: _mean(c[figure] for c in clients) for figure in FIGURES}
    hm2 = harmonic_mean(means["base"], means["novel"])
    local = sorted(c["local"] for c in clients if c["local"] is not None)
    by_domain: dict[str, list] = {}
    for row, figures in zip(rows, clients, strict=True):
        if row.get("domain") is not None:
            by_domain.setdefault(row["domain"], []).append(figures["local"])
    return {
        **means,
        "hm3": harmonic_mean(*means.values()),
        "hm2": hm2,
        "cm": None if hm2 is None or means["local"] is None else (means["local"] + hm2) / 2,
        "ece": _mean(row.get(f"{model}.ece") for row in rows),
        "worst10": _mean(local[: math.ceil(len(local) / 10)]),
        "domains": {domain: _mean(values) for domain, values in by_domain.items()} or None,
        "std_clients": {name: _std(c[name] for c in clients) for name in (*FIGURES, "hm3", "hm2")},
    }


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
