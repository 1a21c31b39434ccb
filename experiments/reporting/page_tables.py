"""The tables of a run's page, and what their columns mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

from experiments.reporting.client_panels import by_client, distinct_models
from experiments.reporting.formatting import format_percent
from experiments.reporting.runs import Run
from fedpgp.evaluation.figures import CLIENT_FIGURES, FIGURES, UNSEEN


def shown_columns(run: Run) -> list[str]:
    """Return the figures that the protocol has, the local one always."""
    return [
        name
        for name in CLIENT_FIGURES
        if name == "local" or not math.isnan(run.figure("personal", name))
    ]


def summary_table(run: Run) -> list[dict]:
    """Return a row a model: (text, difference from the row above, whether it is the best of its
    column) a figure."""
    rows, above = [], None
    models, columns = distinct_models(run), shown_columns(run)
    printed = {
        column: [format_percent(run.figure(key, column)) for _, key in models] for column in columns
    }
    for index, (name, key) in enumerate(models):
        cells = []
        for column in columns:
            difference = run.figure(key, column) - run.figure(above, column) if above else math.nan
            delta = (
                ""
                if math.isnan(difference) or _rounds_to_zero(difference)
                else f"{difference:+.1f}".replace("-", "−")
            )
            cells.append((printed[column][index], delta, is_best(printed[column], index)))
        rows.append({"key": key, "name": name, "cells": cells})
        above = key
    return rows


def reading(run: Run) -> str:
    """Return what the columns mean, as far as the protocol has them, and how far to trust one
    run."""
    meaning = {name: FIGURES[name].meaning for name in shown_columns(run)}
    if "unseen" in meaning and run.choice("protocol") in UNSEEN:
        _, meaning["unseen"] = UNSEEN[run.choice("protocol")]
    titles = {name: FIGURES[name].title for name in meaning}
    words = [
        f"{titles[name][0].upper()}{titles[name][1:]}: {what}." for name, what in meaning.items()
    ]
    answered, clients = run.reported_clients
    if answered < clients:
        why = "the others did not answer the last evaluation"
        if (run.summary or {}).get("attack"):
            why = "the others attack, or did not answer the last evaluation"
        if not run.evaluates_all:
            drawn = run.config.get("evaluate_clients")
            why = f"an evaluation asks evaluate_clients={drawn}, drawn from the seed"
            why = "an evaluation asks as many (evaluate_clients)" if drawn is None else why
        words.append(f"Of {answered} of {clients} clients: {why}.")
    if run.choice("partition") == "own":
        words.append(
            "Clients round the figures of their own images to what the number of these allows."
        )
    if run.choice("method") == "zero_shot":
        pass
    elif run.one_prompt:
        words.append("This method has one prompt for all.")
    elif not run.accuracy["global"]:
        words.append("This method has no global prompt.")
    if len(distinct_models(run)) > 1:
        words.append(
            "Small figures: the difference from the row above. Bold: the best of a column."
        )
    words.append("One seed; repeat with others to see how much is chance.")
    return " ".join(words)


def domain_table(run: Run) -> dict | None:
    """Accuracy of each domain; None without domains, or with one client each (the bars show it)."""
    clients = by_client(run)
    domains = (run.accuracy["personal"] or {}).get("domains") or {}
    if len(domains) < 2 or (clients and len(clients) <= len(domains)):
        return None
    return table_of(run, "domains")


def table_of(run: Run, kind: str) -> dict | None:
    """Return a table of a figure that is one number a domain or data set; None where there is
    none."""
    names = list((run.accuracy["personal"] or {}).get(kind) or {})
    rows = [
        {
            "key": key,
            "name": name,
            "cells": [format_percent(run.figure(key, f"{kind}.{one}")) for one in names],
        }
        for name, key in distinct_models(run)
    ]
    for k in range(len(names)):
        column = [row["cells"][k] for row in rows]
        for index, row in enumerate(rows):
            row["cells"][k] = (column[index], is_best(column, index))
    return {"names": names, "rows": rows} if names else None


def is_best(printed: Sequence[str], index: int) -> bool:
    """Return whether a printed figure is the greatest of its column, where they are not all
    alike."""
    values = [float(text) for text in printed if text != "–"]
    return len(set(values)) > 1 and printed[index] != "–" and float(printed[index]) == max(values)


def _rounds_to_zero(difference: float) -> bool:
    return abs(difference) < 0.05
