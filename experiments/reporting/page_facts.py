"""The figures of a run's page beside accuracy: time, bytes, memory, privacy."""

from __future__ import annotations

import math

from experiments.reporting.formatting import (
    format_attackers,
    format_bytes,
    format_megabytes,
    format_privacy,
    format_rates,
    format_seconds,
    kept_by_nodes,
)
from experiments.reporting.runs import Run, number
from fedpgp.evaluation.figures import FIGURES

SIMULATED = ("ray", "inline")
"""The runtimes of a simulation; any other is a deployment."""


def run_facts(run: Run) -> list[tuple[str, str, str]]:
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
        simulated = run.choice("runtime") in SIMULATED
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
    if len(placed) > 1 and run.choice("runtime") in SIMULATED:
        shown = ", ".join(f"{count:,} on {machine}" for machine, count in placed.items())
        facts.append(("Machines", f"{len(placed)}", f"clients trained, over all rounds: {shown}"))
    if attack := summary.get("attack"):
        attackers = attack["clients"]
        rates = attack["success_rate"]
        note = format_attackers(attack["name"], attackers, int(number(summary["clients"])))
        note += f"; it succeeds with {format_rates(rates)}" if rates else ""
        if left_out := attack.get("left_out"):
            mine, others = left_out["attackers"], left_out["honest"]
            note += f"; {mine:,} of their updates and {others:,} of the others' were left out"
        facts.append(("Attackers", f"{len(attackers)}", note))
    if privacy := summary.get("privacy"):
        accounted = privacy["epsilon"] is not None and not privacy["seeded"]
        value = f"epsilon {privacy['epsilon']:.3g}" if accounted else "no guarantee"
        if kept_by_nodes(privacy):
            most = privacy["at_most"]
            value = "kept by the nodes" if most is None else f"epsilon {most:.3g} at most"
        facts.append(("Privacy", value, format_privacy(privacy)))
    error = run.figure("personal", "ece")
    if not math.isnan(error):
        facts.append((FIGURES["ece"].caption, f"{error:.1f} %", "personal prompt, expected"))
    worst = run.figure("personal", "worst10")
    if not math.isnan(worst):
        facts.append(("Worst tenth of clients", f"{worst:.1f} %", "local, personal prompt"))
    return facts
