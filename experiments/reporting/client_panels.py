"""The accuracy of every client on its own images, drawn; and which models of a run differ."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

from experiments.reporting import charts
from experiments.reporting.runs import Run
from fedpgp.evaluation.figures import MODELS

_CLIENTS_AS_BARS = 120
_CLIENTS_A_PANEL = 12


def distinct_models(run: Run) -> list[tuple[str, str]]:
    """(name, key) of the models that differ: one prompt for all is drawn once, as the global
    one."""
    if run.choice("method") == "zero_shot":
        return [(MODELS["zero_shot"], "zero_shot")] if run.accuracy["zero_shot"] else []
    same = ("personal",) if run.one_prompt else ()
    return [(name, key) for key, name in MODELS.items() if run.accuracy[key] and key not in same]


def client_panels(run: Run) -> tuple[list[tuple[str, str, Any]], str]:
    """(title, note, chart) of each panel; many clients are drawn as a histogram and its two
    ends."""
    clients = by_client(run)
    models = [
        (name, key) for name, key in distinct_models(run) if any(key in row for row in clients)
    ]

    def bars(title: str, note: str, rows: list[dict]) -> tuple[str, str, Any]:
        values = [
            (
                row["name"] or f"client {row['id']}",
                [row[key]["local"] if key in row else math.nan for _, key in models],
            )
            for row in rows
        ]
        return title, note, charts.client_bars(values, models, title=f"Local accuracy: {title}")

    if not clients:
        return [], ""
    if len(clients) > _CLIENTS_AS_BARS:
        groups = [
            (name, key, [row[key]["local"] for row in clients if key in row])
            for name, key in models
        ]
        panels = [
            ("All clients", "", charts.histogram(groups, title="Local accuracy of the clients"))
        ]
        mine, other = models[-1][1], models[-2][1] if len(models) > 1 else models[-1][1]
        ranked = [row for row in clients if mine in row and other in row and mine != other]
        ranked = [row for row in ranked if not math.isnan(row[mine]["local"] - row[other]["local"])]
        ranked.sort(key=lambda row: row[mine]["local"] - row[other]["local"])
        if ranked:
            panels.append(bars("Gained most", f"over the {MODELS[other]}", ranked[-8:][::-1]))
            panels.append(bars("Gained least, or lost", "", ranked[:8]))
        return panels, "How many clients have which accuracy, and the two ends of the list."

    panels = []
    for domain, rows in grouped(clients, "domain").items():
        size = (
            _CLIENTS_A_PANEL if domain else min(_CLIENTS_A_PANEL, max(4, math.ceil(len(rows) / 3)))
        )
        pieces = [rows[start : start + size] for start in range(0, len(rows), size)]
        for piece in pieces:
            span = _span(piece[0]["id"], piece[-1]["id"]) if len(pieces) > 1 else ""
            heading = domain or span or "all clients"
            panels.append(bars(heading, span if domain else "", piece))
    has_domains = clients[0]["domain"] is not None
    last = "" if len(models) < 2 else f"; the number is the {models[-1][0]}’s"
    return panels, f"Accuracy in percent{', by domain' if has_domains else ''}{last}."


def by_client(run: Run) -> list[dict]:
    """Return a dict a client: id, domain, name, and the clients.csv row of each model."""
    clients: dict[int, dict] = defaultdict(dict)
    for row in run.clients:
        about = {
            "id": row["id"],
            "domain": row.get("domain") or None,
            "name": row.get("name") or "",
        }
        clients[row["id"]] |= {**about, row["model"]: row}
    return [clients[key] for key in sorted(clients)]


def _span(first: int, last: int) -> str:
    return f"client {first}" if first == last else f"clients {first} to {last}"


def grouped(rows: list[dict], key: str) -> dict[Any, list[dict]]:
    groups: dict[Any, list[dict]] = defaultdict(list)
    for row in rows:
        groups[row[key]].append(row)
    return groups
