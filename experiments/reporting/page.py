"""`report.html`: everything one run has to show, on one self-contained page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from experiments.overrides import again_command
from experiments.reporting import charts
from experiments.reporting.client_panels import by_client, client_panels, distinct_models, grouped
from experiments.reporting.formatting import (
    format_bytes,
    format_megabytes,
    format_percent,
    format_privacy,
    format_seconds,
    format_setting,
)
from experiments.reporting.headlines import headline
from experiments.reporting.runs import Run, number, read_run
from experiments.reporting.titles import title
from experiments.run_folder import ABOUT
from experiments.settings import flatten
from fedpgp.assets_path import package_folders
from fedpgp.atomic_files import write_atomically
from fedpgp.figures import ACCURACIES, CLIENT_FIGURES, FIGURES, UNSEEN
from fedpgp.plain_text import called

_CLIENTS_AS_BUBBLES = 120
_TILES_A_DOMAIN = 12
_IN_ONE_PROCESS_TREE = ("ray", "inline")  # the runtimes of a simulation; any other is a deployment


def write_report(run_dir: str | Path) -> Path:
    """Writes `run_dir/report.html` from the files of the run folder and returns its path.

    A run that did not finish gets a page of what there is. Raises FedPGPError naming a file that is
    damaged, or that cannot be written.
    """
    path = Path(run_dir) / "report.html"
    write_atomically(path, render_run(read_run(run_dir)).encode())
    return path


def environment() -> jinja2.Environment:
    """The templates of this folder, with everything from a run folder escaped."""
    # Where Flower sent the code alone, they are in the installed package.
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(list(package_folders("experiments", "reporting"))),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals["swatch"] = charts.swatch
    return templates


def render_run(run: Run) -> str:
    """The page of one run as HTML text."""
    tables = [
        ("Domain by domain", _domain_table(run)),
        ("Other data sets", _table_of(run, "datasets")),
    ]
    panels, client_words = client_panels(run)
    bubbles, partition_words = partition_bubbles(run)
    return (
        environment()
        .get_template("template.html.j2")
        .render(
            method=title(run.choice("method")),
            dataset=run.choice("dataset"),
            model=run.choice("model"),
            seed=run.seed,
            badge=_badge(run),
            headline=headline(run),
            lead=_lead(run),
            rounds_done=run.rounds_done,
            reading=_reading(run),
            columns=[FIGURES[name].title for name in _columns(run)],
            table=_summary_table(run),
            facts=_facts(run),
            model_keys=distinct_models(run),
            curves=_curves(run),
            partial=partial_words(run.partial),
            client_panels=panels,
            client_words=client_words,
            tables=[(title, table) for title, table in tables if table],
            bubbles=bubbles,
            partition_words=partition_words,
            **_samples(run),
            training=_training(run),
            dropped=_dropped(run),
            dropped_words=_dropped_words(run),
            capped=run.capped,
            command=again_command(str(run.config.get("command") or "")),
            versions=_versions(run),
            settings=_settings(run),
            folder=run.path.resolve().name,
        )
    )


def partition_bubbles(run: Run) -> tuple[Any, str]:
    """The bubble plot of who holds which class, and a sentence about it."""
    table = run.partition
    if not table:
        return "", ""
    clients = table["clients"]
    if any("train_counts" not in row for row in clients):
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


def _lead(run: Run) -> str:
    """Who was helped, and how far training went."""
    clients = by_client(run)
    sentences = []
    if clients and not run.one_prompt:
        against = "global" if run.accuracy["global"] else "zero_shot"
        differences = [
            row["personal"]["local"] - row[against]["local"]
            for row in clients
            if against in row and "personal" in row
        ]
        differences = [d for d in differences if not math.isnan(d)]
        if differences:
            better, worse = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
            other = "the global one" if against == "global" else "zero-shot CLIP"
            with_own = f"better off with their own prompt than with {other}"
            if not better:
                sentence = f"No client is {with_own.replace('their', 'its')}"
            elif len(differences) == 1:
                sentence = f"The client is {with_own.replace('their', 'its')}"
            elif better == len(differences):
                sentence = f"All {better} clients are {with_own}"
            else:
                sentence = (
                    f"{better} of {len(differences)} clients {'is' if better == 1 else 'are'} "
                    f"{with_own}"
                )
                sentence = sentence.replace("their", "its") if better == 1 else sentence
            if worse:
                sentence += f", {worse} {'is' if worse == 1 else 'are'} worse off"
            sentences.append(sentence + ".")
    zero, personal = run.figure("zero_shot", "local"), run.figure("personal", "local")
    if not math.isnan(zero) and run.accuracy["global"] and not run.one_prompt:
        sentences.append(
            f"Locally, zero-shot CLIP starts at {zero:.1f}\u00a0%; the personal prompts end at "
            f"{personal:.1f}\u00a0%."
        )
    if run.status != "finished":
        sentences.append(f"The run is {run.status}; these are its figures so far.")
    return " ".join(sentences)


def _reading(run: Run) -> str:
    """What the columns mean, as far as the protocol has them, and how far to trust one run."""
    meaning = {name: FIGURES[name].meaning for name in _columns(run)}
    if "unseen" in meaning and run.choice("protocol") in UNSEEN:
        _, meaning["unseen"] = UNSEEN[run.choice("protocol")]
    titles = {name: FIGURES[name].title for name in meaning}
    words = [
        f"{titles[name][0].upper()}{titles[name][1:]}: {what}." for name, what in meaning.items()
    ]
    answered, clients = run.reported_clients
    if answered < clients:
        words.append(
            f"Of {answered} of {clients} clients: the others did not answer the last evaluation."
        )
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


def _columns(run: Run) -> list[str]:
    """The figures that the protocol has, the local one always."""
    return [
        name
        for name in CLIENT_FIGURES
        if name == "local" or not math.isnan(run.figure("personal", name))
    ]


def _summary_table(run: Run) -> list[dict]:
    """A row a model: (text, difference from the row above, whether it is the best of
    its column) a figure."""
    rows, above = [], None
    models, columns = distinct_models(run), _columns(run)
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


def _facts(run: Run) -> list[tuple[str, str, str]]:
    """(name, value, note) of the figures beside accuracy; those that were not
    measured are left out."""
    summary, facts = run.summary or {}, []
    seconds = summary.get("seconds") or {}
    if seconds.get("total") is not None:
        parts = [("encoding images", "encode"), ("training", "train"), ("testing", "evaluate")]
        parts += [("overhead", "overhead")]
        shown = ", ".join(
            f"{format_seconds(seconds[key])} {name}"
            for name, key in parts
            if number(seconds.get(key)) >= 0.05
        )
        facts.append(("Time", format_seconds(seconds["total"]), shown))
    up, down = number(summary.get("bytes_up")), number(summary.get("bytes_down"))
    if math.isnan(up) and run.trains:
        up, down = (
            sum(number(row.get(key)) for row in run.trains) for key in ("bytes_up", "bytes_down")
        )
    if not math.isnan(up):
        facts.append(
            (
                "Sent by the clients",
                format_bytes(up),
                f"{format_bytes(down)} received, as a deployment would",
            )
        )
    wire_up, wire_down = (
        number(summary.get("wire_bytes_up")),
        number(summary.get("wire_bytes_down")),
    )
    if not math.isnan(wire_up):
        simulated = run.choice("runtime") in _IN_ONE_PROCESS_TREE
        name, note = (
            ("Sent in this simulation", "clients share a node")
            if simulated
            else ("Sent", "with their headers")
        )
        facts.append((name, format_bytes(wire_up + wire_down), f"both ways, {note}"))
    speed = number(summary.get("images_per_second"))
    if not math.isnan(speed):
        facts.append(("Images a second", f"{speed:,.0f}", "in training"))
    memory, gpu = number(summary.get("peak_rss_mb")), number(summary.get("peak_gpu_mb"))
    if not math.isnan(memory):
        facts.append(
            (
                "Memory",
                format_megabytes(memory),
                f"and {format_megabytes(gpu)} on the GPU" if gpu > 0 else "",
            )
        )
    placed = run.machines
    if len(placed) > 1 and run.choice("runtime") in _IN_ONE_PROCESS_TREE:
        shown = ", ".join(f"{count:,} on {machine}" for machine, count in placed.items())
        facts.append(("Machines", f"{len(placed)}", f"clients trained, over all rounds: {shown}"))
    if privacy := summary.get("privacy"):
        facts.append(("Privacy", "no guarantee", format_privacy(privacy)))
    error = run.figure("personal", "ece")
    if not math.isnan(error):
        facts.append((FIGURES["ece"].caption, f"{error:.1f} %", "personal prompt, expected"))
    worst = run.figure("personal", "worst10")
    if not math.isnan(worst):
        facts.append(("Worst tenth of clients", f"{worst:.1f} %", "local, personal prompt"))
    return facts


def _curves(run: Run) -> list[tuple[str, Any]]:
    drawn = []
    partial = set(run.partial)
    drawn_figures = [*ACCURACIES]
    if math.isnan(run.figure("personal", "base")):
        drawn_figures += ["worst10", "ece"]
    for figure in drawn_figures:
        name = f"{FIGURES[figure].caption}, {FIGURES[figure].unit}"
        series = [
            charts.Series(of, key, run.curve(key, figure), partial=partial)
            for of, key in distinct_models(run)
        ]
        drawn.append((name, charts.line_chart(series, title=name, unit=f" {FIGURES[figure].unit}")))
    return [(name, svg) for name, svg in drawn if svg]


def _clients(count: int) -> str:
    return f"{count} client{'s' * (count != 1)}"


def _domain_table(run: Run) -> dict | None:
    """Accuracy of each domain; None without domains, or with one client each (the bars show it)."""
    clients = by_client(run)
    domains = (run.accuracy["personal"] or {}).get("domains") or {}
    if len(domains) < 2 or (clients and len(clients) <= len(domains)):
        return None
    return _table_of(run, "domains")


def _table_of(run: Run, kind: str) -> dict | None:
    """A table of a figure that is one number a domain or data set; None where there is none."""
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


def _training(run: Run) -> list[tuple[str, str, list[tuple[str, str]], Any]]:
    """(title, note, legend, chart) of loss, bytes and time."""
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
    return [entry for entry in drawn if entry[-1]]


def _samples(run: Run) -> dict[str, Any]:
    """The template's `sample_groups`, `sample_by_domain` and `no_samples`."""
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
    deployed = run.choice("runtime") not in _IN_ONE_PROCESS_TREE
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
    """The configuration, its single values first, then a list a group."""
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


def is_best(printed: Sequence[str], index: int) -> bool:
    """Whether a printed figure is the greatest of its column, where they are not all alike."""
    values = [float(text) for text in printed if text != "–"]
    return len(set(values)) > 1 and printed[index] != "–" and float(printed[index]) == max(values)


def partial_words(partial: Mapping[int, tuple[int, int]], of: str = "") -> str:
    """The note under a figure about evaluations that not all clients answered; empty where all
    did."""
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
    """A probability, written as a fraction of one or in percent, in words."""
    value = number(confidence)
    return "" if math.isnan(value) else f"{value * 100 if value <= 1 else value:.0f}\u00a0% sure"


def _dropped(run: Run) -> list[dict]:
    """Who was left out of a round, by name where its node has told one, and why."""
    rows = {row["id"]: row for row in run.partition.get("clients", [])}
    return [
        {**entry, "who": called(rows.get(entry["client"], {"id": entry["client"]}))}
        for entry in run.dropped
    ]


def _dropped_words(run: Run) -> str:
    """How many updates were left out, and of whom most, at most five of them."""
    counts = Counter(entry["who"] for entry in _dropped(run))
    most = ", ".join(
        f"{who} in {many} round{'s' * (many > 1)}" for who, many in counts.most_common(5)
    )
    more = f" and {len(counts) - 5} others" if len(counts) > 5 else ""
    return f"{counts.total()} update{'s' * (counts.total() > 1)}: {most}{more}."


def _client_name(row: dict) -> str:
    called = row.get("name") or row.get("domain")
    return f"{row['id']} · {called}" if called else f"client {row['id']}"


def _rounds_to_zero(difference: float) -> bool:
    return abs(difference) < 0.05
