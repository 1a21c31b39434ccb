"""Numbers in the words people read: sizes, times, points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedpgp.evaluation.figures import MODELS

_LISTED = 8
"""Attackers that a line names."""


def format_bytes(count: float) -> str:
    """`"1.2 MB"`; decimal units, as networks are measured."""
    if math.isnan(count):
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def format_megabytes(count: float) -> str:
    """Memory as summary.json has it, in MiB, in the units of :func:`format_bytes`."""
    return format_bytes(count * 2**20)


def format_seconds(seconds: float) -> str:
    """`"0.4 s"`, `"12 s"`, `"1:05 min"`, `"2:03:04 h"`."""
    if math.isnan(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d} h"


def format_percent(value: float, digits: int = 1) -> str:
    """A figure in percent without its sign; a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def format_points(difference: float) -> str:
    """The size of a difference of two percentages: `"8.1 points"`."""
    text = f"{abs(difference):.1f}"
    return f"{text} point" if text == "1.0" else f"{text} points"


def format_mean_and_std(mean: float, std: float, sign: str = "") -> str:
    """`"72.41 ± 0.53"`, `"72.41"` without a spread, a dash without a mean;
    `sign="+"` writes a plus too."""
    if math.isnan(mean):
        return "–"
    return f"{mean:{sign}.2f}" + ("" if math.isnan(std) else f" ± {std:.2f}")


def format_setting(value: Any) -> str:
    """A value of the configuration, as it is written on the command line; a dash for null."""
    return "–" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def kept_by_nodes(privacy: dict) -> bool:
    """Whether the noise is accounted by the nodes of a deployment alone."""
    accounted = privacy.get("kept_by") == "nodes" and privacy["noise_multiplier"] != 0
    return accounted and not privacy["seeded"]


def format_privacy(privacy: dict) -> str:
    """What noise is worth, by ``privacy`` of summary.json."""
    if privacy["unit"] == "client" and not privacy["seeded"] and privacy["epsilon"] is not None:
        return (
            f"epsilon {privacy['epsilon']:.3g}, delta {privacy['delta']:.2g} of a client, to those "
            f"who see the global prompts alone ({privacy['accountant']}, "
            f"{privacy['rounds']} rounds)"
        )
    if privacy["unit"] == "image" and not privacy["seeded"] and privacy["epsilon"] is not None:
        return (
            f"epsilon {privacy['epsilon']:.3g}, delta {privacy['delta']:.2g} of an image, at the "
            "client where it is largest, to those who see all that its training leaves "
            f"({privacy['accountant']}, {privacy['rounds']} rounds)"
        )
    if kept_by_nodes(privacy):
        most = privacy["at_most"]
        bound = "" if most is None else f"; none passes epsilon {most:g}"
        return (
            "of an image, to those who see all that its client's training leaves; the account of "
            f"each client stays on its node{bound} ({privacy['rounds']} rounds)"
        )
    if privacy["seeded"]:
        return (
            "the noise comes from the run's seed: whoever knows it can take the noise off; "
            "nothing is private"
        )
    return (
        "the noise is secret, so a repeated run has other figures; no epsilon is accounted, no "
        "guarantee follows"
    )


def format_attackers(name: str, attackers: Sequence[int], clients: int) -> str:
    """Who attacks a run: ``"sign_flip by 2 of 24 clients (3, 7); the figures are of the
    others"``."""
    listed = ", ".join(map(str, attackers[:_LISTED]))
    more = ", …" if len(attackers) > _LISTED else ""
    return (
        f"{name} by {len(attackers)} of {clients} clients ({listed}{more}); the figures are of the "
        "others"
    )


def format_rates(rates: Mapping[str, float | None]) -> str:
    """How often an attack succeeds with each model: ``"global prompt 41.3 %, personal prompt
    38.2 %"``."""
    return ", ".join(
        f"{MODELS[model]} {format_percent(rate)}\u00a0%"
        for model, rate in rates.items()
        if rate is not None
    )
