"""Prometheus' text format, version 0.0.4."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass
class Metric:
    """One name, its meaning, and its values.

    Attributes:
        name: with its unit at the end.
        meaning: a sentence.
        kind: ``gauge`` or ``counter``.
        values: labels -> value.
    """

    name: str
    meaning: str
    kind: str = "gauge"
    values: list[tuple[Mapping[str, str], float]] = field(default_factory=list)

    def add(self, value: float | None, **labels: str) -> "Metric":
        """Add a value, where there is one; return the metric."""
        if value is not None:
            self.values.append((labels, float(value)))
        return self


def exposition(metrics: Iterable[Metric]) -> str:
    """Return metrics as text; those without a value are left out.

    Example:
        >>> print(exposition([Metric("round", "The newest.").add(3, run="a")]), end="")
        # HELP round The newest.
        # TYPE round gauge
        round{run="a"} 3
    """
    lines: list[str] = []
    for metric in metrics:
        if not metric.values:
            continue
        meaning = metric.meaning.replace("\\", "\\\\").replace("\n", "\\n")
        lines += [f"# HELP {metric.name} {meaning}", f"# TYPE {metric.name} {metric.kind}"]
        for labels, value in metric.values:
            shown = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items())
            lines.append(f"{metric.name}{f'{{{shown}}}' if shown else ''} {_number(value)}")
    return "".join(f"{line}\n" for line in lines)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
