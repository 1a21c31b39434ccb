"""`report.html`: everything one run has to show, on one self-contained page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from experiments.overrides import again_command
from experiments.reporting import charts
from experiments.reporting.client_panels import client_panels, distinct_models, grouped
from experiments.reporting.drawing import swatch
from experiments.reporting.formatting import (
    format_bytes,
    format_seconds,
    format_setting,
)
from experiments.reporting.headlines import headline, lead
from experiments.reporting.newcomers import of_newcomers
from experiments.reporting.page_facts import SIMULATED, run_facts
from experiments.reporting.page_tables import (
    domain_table,
    reading,
    shown_columns,
    summary_table,
    table_of,
)
from experiments.reporting.privacy_charts import privacy_charts
from experiments.reporting.runs import Run, number, read_run
from experiments.reporting.task_charts import task_section
from experiments.reporting.titles import title
from experiments.run_folder import ABOUT, EXTENDED
from experiments.settings import flatten
from fedpgp.assets_path import package_folders
from fedpgp.atomic_files import write_atomically
from fedpgp.evaluation.figures import FIGURES
from fedpgp.plain_text import called, printable

_CLIENTS_AS_BUBBLES = 120
_TILES_A_DOMAIN = 12


def write_report(run_dir: str | Path, refresh: int | None = None) -> Path:
    """Write `run_dir/report.html` from the files of the run folder and return its path.

    A run that did not finish gets a page of what there is. Raises FedPGPError naming a file that is
    damaged, or that cannot be written. `refresh`: seconds after which the page loads itself again,
    while the run is at work.
    """
    path = Path(run_dir) / "report.html"
    write_atomically(path, render_run(read_run(run_dir), refresh).encode())
    return path


@cache
def environment() -> jinja2.Environment:
    """Return the templates of this folder, compiled once, with everything from a run folder
    escaped."""
    # Where Flower sent the code alone, they are in the installed package.
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(list(package_folders("experiments", "reporting"))),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_without_unseen,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals["swatch"] = swatch
    return templates


def _without_unseen(value: object) -> object:
    """Return what a page shows of a value: a text that somebody else wrote without characters that
    are not seen."""
    return printable(value) if type(value) is str else value


def render_run(run: Run, refresh: int | None = None) -> str:
    """Return the page of one run as HTML text; `refresh` as in `write_report`."""
    tables = [
        ("Domain by domain", domain_table(run)),
        ("Other data sets", table_of(run, "datasets")),
    ]
    panels, client_words = client_panels(run)
    bubbles, partition_words = partition_bubbles(run)
    return (
        environment()
        .get_template("template.html.j2")
        .render(
            refresh=refresh,
            method=title(run.choice("method")),
            dataset=run.choice("dataset"),
            model=run.choice("model"),
            seed=run.seed,
            badge=_badge(run),
            headline=headline(run),
            lead=lead(run),
            rounds_done=run.rounds_done,
            reading=reading(run),
            columns=[FIGURES[name].title for name in shown_columns(run)],
            table=summary_table(run),
            facts=run_facts(run),
            model_keys=distinct_models(run),
            curves=_curves(run),
            partial=partial_words(run.partial),
            client_panels=panels,
            client_words=client_words,
            tasks=task_section(run),
            tables=[(title, table) for title, table in tables if table],
            bubbles=bubbles,
            partition_words=partition_words,
            **_samples(run),
            training=_training(run),
            of_newcomers=of_newcomers([run]),
            dropped=_dropped(run),
            dropped_words=_dropped_words(run),
            capped=run.capped,
            command=again_command(
                str(run.config.get("command") or ""),
                run.rounds if EXTENDED in run.config else None,
            ),
            versions=_versions(run),
            settings=_settings(run),
            folder=run.path.resolve().name,
        )
    )


def partition_bubbles(run: Run) -> tuple[Any, str]:
    """Return the bubble plot of who holds which class, and a sentence about it."""
    table = run.partition
    if not table:
        return "", ""
    clients = table["clients"]
    if any("train_counts" not in row for row in clients):
        if any(row["train_images"] is None for row in clients):
            return "", f"{_clients(len(clients))}. How many images each has is kept by the client."
        images = sum(row["train_images"] for row in clients)
        return (
            "",
            f"{images:,} training images on {_clients(len(clients))}. Which classes they show is "
            "kept by the client.",
        )
    rows = [(_client_name(row), row["train_counts"]) for row in clients[:_CLIENTS_AS_BUBBLES]]
    held = {name for row in clients for name, count in row["train_counts"].items() if count}
    names = [name for name in table["class_names"] if name in held]
    images = sum(row["train_images"] for row in clients)
    kinds = [sum(1 for count in row["train_counts"].values() if count) for row in clients]
    spread = f"{min(kinds)}" if min(kinds) == max(kinds) else f"{min(kinds)} to {max(kinds)}"
    words = (
        f"{images:,} training images on {_clients(len(clients))}, split by the scheme "
        f"“{run.choice('partition')}”; a client holds {spread} of the {len(names)} classes in "
        "training. The area of a disc is its number of images."
    )
    if len(clients) > len(rows):
        words += f" The first {len(rows)} clients are drawn."
    return charts.bubbles(rows, names, title="Images of each class at each client"), words


def _badge(run: Run) -> str:
    if run.status == "finished":
        return ""
    return f"{run.status}: round {run.rounds_done} of {run.rounds}"


def _curves(run: Run) -> list[tuple[str, Any]]:
    drawn = []
    partial = set(run.partial)
    for figure in FIGURES.values():
        if not figure.caption:
            continue
        name = f"{figure.caption}, {figure.unit}"
        series = [
            charts.Series(of, key, run.curve(key, figure.name), partial=partial)
            for of, key in distinct_models(run)
        ]
        drawn.append((name, charts.line_chart(series, title=name, unit=f" {figure.unit}")))
    return [(name, svg) for name, svg in drawn if svg]


def _clients(count: int) -> str:
    return f"{count} client{'s' * (count != 1)}"


def _training(run: Run) -> list[tuple[str, str, list[tuple[str, str]], Any]]:
    """(title, note, legend, chart) of loss, bytes, time and epsilon."""
    loss = [(row["round"], number(row.get("loss"))) for row in run.trains]
    loss = [(x, y) for x, y in loss if math.isfinite(y)]
    sent = [
        (row["round"], [number(row.get("bytes_up")), number(row.get("bytes_down"))])
        for row in run.trains
    ]
    sent = [(x, parts) for x, parts in sent if not any(map(math.isnan, parts))]
    seconds = [(row["round"], [number(row.get("seconds"))]) for row in run.trains]
    seconds = [(x, parts) for x, parts in seconds if not math.isnan(parts[0])]
    directions = [("sent", "up"), ("received", "down")]
    loss_chart = charts.line_chart(
        [charts.Series("loss", "loss", loss)], title="Training loss", digits=2
    )
    byte_chart = charts.column_chart(sent, directions, title="Bytes per round", text=format_bytes)
    time_chart = charts.column_chart(
        seconds, [("time", "time")], title="Time per round", text=format_seconds
    )
    drawn = [
        ("Loss", "mean over the clients of a round", [], loss_chart),
        ("Bytes of a round", "by the clients", directions, byte_chart),
        ("Time of a round", "", [], time_chart),
    ]
    return [entry for entry in drawn if entry[-1]] + privacy_charts(run)


def _samples(run: Run) -> dict[str, Any]:
    """Return the template's `sample_groups`, `sample_by_domain` and `no_samples`."""
    groups = []
    by_domain = any(sample["domain"] for sample in run.samples)
    for name, samples in grouped(run.samples, "domain" if by_domain else "client").items():
        # evenly over the clients, right and wrong in the proportion they were drawn; the right ones
        # first
        shown = samples[:: math.ceil(len(samples) / _TILES_A_DOMAIN)]
        shown = sorted(shown, key=lambda sample: not sample["correct"])
        tiles = [sample | {"sure": _sure(sample["confidence"])} for sample in shown]
        heading = str(name) if by_domain else f"client {name}"
        right = sum(bool(sample["correct"]) for sample in shown)
        groups.append(
            {"name": heading, "tiles": tiles, "right": right, "wrong": len(shown) - right}
        )
    deployed = run.choice("runtime") not in SIMULATED
    none = (
        "Kept by the client: in a deployment no image leaves its owner."
        if deployed
        else "No test images were saved in this run."
    )
    return {
        "sample_groups": groups[:24],
        "sample_by_domain": by_domain,
        "no_samples": none,
        "personal_samples": not run.one_prompt,
    }


def _versions(run: Run) -> str:
    versions = run.config.get("versions") or {}
    words = [f"{name} {version}" for name, version in versions.items()]
    if run.config.get("git_commit"):
        commit, _, changes = str(run.config["git_commit"]).partition("+")
        words.append(f"commit {commit[:12]}{' with changes' if changes else ''}")
    return ", ".join(words)


def _settings(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the configuration, its single values first, then a list a group."""
    config = {key: value for key, value in run.config.items() if key not in ABOUT}
    top = [
        (key, format_setting(value)) for key, value in config.items() if not isinstance(value, dict)
    ]
    groups = [
        (name, [(key, format_setting(value)) for key, value in flatten(group).items()])
        for name, group in config.items()
        if isinstance(group, dict) and group
    ]
    return [("", top), *groups]


def partial_words(partial: Mapping[int, tuple[int, int]], of: str = "") -> str:
    """Return the note under a figure about evaluations that not all clients answered; empty where
    all did."""
    if not partial:
        return ""
    rounds = [
        f"{answered} of {clients} in round {index}"
        for index, (answered, clients) in partial.items()
    ]
    more = f" and {len(rounds) - 3} other rounds" if len(rounds) > 3 else ""
    which = ", ".join(rounds[:3])
    return (
        f"Open dots: not all clients answered{of} ({which}{more}), so the mean is one over fewer "
        "clients."
    )


def _sure(confidence: Any) -> str:
    """Return a probability, written as a fraction of one or in percent, in words."""
    value = number(confidence)
    return "" if math.isnan(value) else f"{value * 100 if value <= 1 else value:.0f}\u00a0% sure"


def _dropped(run: Run) -> list[dict]:
    """Return who was left out of a round, by name where its node has told one, and why."""
    rows = {row["id"]: row for row in run.partition.get("clients", [])}
    return [
        {**entry, "who": called(rows.get(entry["client"], {"id": entry["client"]}))}
        for entry in run.dropped
    ]


def _dropped_words(run: Run) -> str:
    """Return how many updates were left out, and of whom most, at most five of them."""
    counts = Counter(entry["who"] for entry in _dropped(run))
    most = ", ".join(
        f"{who} in {many} round{'s' * (many > 1)}" for who, many in counts.most_common(5)
    )
    more = f" and {len(counts) - 5} others" if len(counts) > 5 else ""
    return f"{counts.total()} update{'s' * (counts.total() > 1)}: {most}{more}."


def _client_name(row: dict) -> str:
    called = row.get("name") or row.get("domain")
    return f"{row['id']} · {called}" if called else f"client {row['id']}"
