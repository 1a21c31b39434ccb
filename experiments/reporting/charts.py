"""The charts of the pages: small inline SVG without scripts, coloured by the page's style sheet.

A chart is drawn for the width at which it is read (about 340 px), so its text stays legible on a
phone; a page places several side by side. Everything that can be pointed at carries a `<title>`,
which browsers show on hover.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from experiments.reporting.drawing import (
    PAGE_WIDTH,
    WIDTH,
    axes,
    dot,
    escape,
    margin,
    nice_ticks,
    plain,
    scale,
    svg,
)


@dataclass(frozen=True)
class Series:
    """A named line. `style` is the CSS class that colours it; `spread` the half-width of its
    band at each point; `partial` the places of points that are means over fewer clients than
    the others, drawn open."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]
    spread: Sequence[float] = ()
    partial: Collection[float] = ()


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    unit: str = "",
    digits: int = 1,
    zero: bool = False,
    x_label: str = "round",
    height: int = 226,
    end_labels: bool = True,
    wide: bool = False,
) -> Markup:
    """Lines over rounds, each labelled with its last value at its end; `wide` takes the page's
    whole width and names the lines there too. Empty when no series has a point."""
    series = [one for one in series if len(one.points)]
    if not series:
        return Markup("")
    right, top, bottom = 46 if end_labels else 12, 10, 34
    full = WIDTH
    if wide:
        full, height = PAGE_WIDTH, max(height, int(12.5 * len(series)) + top + bottom)
        right += 7 * max(len(one.name) for one in series)
    xs = [x for one in series for x, _ in one.points]
    ys = [y + sign * s for one in series for (_, y), s in _with_spread(one) for sign in (-1, 1)]
    y_ticks = nice_ticks(0 if zero else min(ys), max(ys))
    left = margin(y_ticks)
    x_ticks = [x for x in nice_ticks(min(xs), max(xs), 5, whole=True) if min(xs) <= x <= max(xs)]
    x_at = scale(min(xs), max(max(xs), min(xs) + 1), left, full - right)
    y_at = scale(y_ticks[0], y_ticks[-1], height - bottom, top)

    parts = axes(x_ticks, y_ticks, x_at, y_at, left, full - right, height, bottom, x_label)
    for one in series:
        if one.spread and len(one.points) > 1:
            upper = [f"{x_at(x):.1f},{y_at(y + s):.1f}" for (x, y), s in _with_spread(one)]
            lower = [f"{x_at(x):.1f},{y_at(y - s):.1f}" for (x, y), s in _with_spread(one)]
            parts.append(
                f'<polygon class="band {one.style}" points="{" ".join(upper + lower[::-1])}"/>'
            )
    for one in series:
        path = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in one.points)
        parts.append(f'<polyline class="line {one.style}" points="{path}"/>')
        radius = 2.6 if len(one.points) <= 30 else 1.2
        for (x, y), spread in _with_spread(one):
            around = f" ± {spread:.{digits}f}" if spread else ""
            hint = escape(f"{one.name}: {y:.{digits}f}{around}{unit}, {x_label} {plain(x)}")
            if x in one.partial:
                hint += " (not all clients)"
                parts.append(
                    f'<circle class="open {one.style}" cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" '
                    'r="3.2"/>'
                )
            elif one.style != "zero_shot":  # it never changes: a dashed line says that better
                parts.append(dot(one.style, x_at(x), y_at(y), radius))
            parts.append(
                f'<circle class="aim" cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" '
                f'r="7"><title>{hint}</title></circle>'
            )
    if end_labels:
        ends = _apart([y_at(one.points[-1][1]) for one in series], 12.5, top + 4, height - bottom)
        for one, y in zip(series, ends, strict=True):
            x, value = x_at(one.points[-1][0]) + 8, one.points[-1][1]
            name = f" {escape(one.name)}" if wide else ""
            parts.append(
                f'<text class="end {one.style}" x="{x:.1f}" '
                f'y="{y + 4:.1f}">{value:.{digits}f}{name}</text>'
            )
    return svg(full, height, title, parts, fixed=wide)


def column_chart(
    columns: Sequence[tuple[float, Sequence[float]]],
    styles: Sequence[tuple[str, str]],
    *,
    title: str,
    text: Callable[[float], str],
    tick_text: Callable[[float], str] | None = None,
    ticks: Callable[[float], list[float]] | None = None,
    height: int = 200,
) -> Markup:
    """Stacked columns, one a round. `styles`: (name, CSS class) of each part; `text` words a
    value."""
    if not columns:
        return Markup("")
    left, right, top, bottom = 52, 10, 10, 34
    most = max(sum(parts) for _, parts in columns) or 1
    y_ticks = ticks(most) if ticks else nice_ticks(0, most, 3)
    low, high = min(x for x, _ in columns), max(x for x, _ in columns)
    x_at = scale(low - 0.5, high + 0.5, left, WIDTH - right)
    y_at = scale(0, max(y_ticks[-1], most), height - bottom, top)
    x_ticks = [x for x in nice_ticks(low, high, 5, whole=True) if low <= x <= high]
    width = max(1.0, min(26.0, (x_at(1) - x_at(0)) * 0.72))
    parts = axes(
        x_ticks,
        y_ticks,
        x_at,
        y_at,
        left,
        WIDTH - right,
        height,
        bottom,
        "round",
        tick_text or text,
    )
    for x, values in columns:
        base = 0.0
        for (name, style), value in zip(styles, values, strict=True):
            y, tall = y_at(base + value), y_at(base) - y_at(base + value)
            hint = escape(f"round {plain(x)}, {name}: {text(value)}")
            parts.append(
                f'<rect class="fill {style}" x="{x_at(x) - width / 2:.1f}" y="{y:.1f}" '
                f'width="{width:.1f}" height="{max(tall, 0):.1f}"><title>{hint}</title></rect>'
            )
            base += value
    return svg(WIDTH, height, title, parts)


def client_bars(
    rows: Sequence[tuple[str, Sequence[float]]], styles: Sequence[tuple[str, str]], *, title: str
) -> Markup:
    """Horizontal bars from 0 to 100 %, a group of thin bars a client, the last bar's
    value written at its end."""
    left, right, top, bar, gap = 62, 36, 4, 6.5, 9
    group = bar * len(styles) + gap
    height = top + group * len(rows) + 18
    x_at = scale(0, 100, left, WIDTH - right)
    parts = []
    for tick in (0, 25, 50, 75, 100):
        parts.append(
            f'<line class="grid" x1="{x_at(tick)}" x2="{x_at(tick)}" y1="{top}" '
            f'y2="{height - 18:.1f}"/>'
        )
        parts.append(
            f'<text class="tick" x="{x_at(tick)}" y="{height - 5:.1f}" '
            f'text-anchor="middle">{tick}</text>'
        )
    for index, (name, values) in enumerate(rows):
        y = top + index * group + gap / 2
        middle = y + bar * len(styles) / 2 + 4
        parts.append(
            f'<text class="name" x="{left - 8}" y="{middle:.1f}" '
            f'text-anchor="end">{escape(name)}</text>'
        )
        for k, ((label, style), value) in enumerate(zip(styles, values, strict=True)):
            if math.isnan(value):
                continue
            hint = escape(f"{name}, {label}: {value:.1f} %")
            parts.append(
                f'<rect class="fill {style}" x="{left}" y="{y + k * bar:.1f}" '
                f'width="{x_at(value) - left:.1f}" height="{bar - 0.8:.1f}" '
                f'rx="1.2"><title>{hint}</title></rect>'
            )
        shown = [value for value in values if not math.isnan(value)]
        if shown:
            parts.append(
                f'<text class="value" x="{x_at(max(shown)) + 5:.1f}" '
                f'y="{middle:.1f}">{shown[-1]:.1f}</text>'
            )
    return svg(WIDTH, height, title, parts)


def histogram(
    groups: Sequence[tuple[str, str, Sequence[float]]],
    *,
    title: str,
    what: str = "accuracy, %",
    bins: int = 20,
) -> Markup:
    """Return one row of columns a group ((name, CSS class, a value a client)), all on one scale; a
    line marks the mean."""
    groups = [
        (name, style, [v for v in values if not math.isnan(v)]) for name, style, values in groups
    ]
    groups = [group for group in groups if group[2]]
    if not groups:
        return Markup("")
    every = [value for _, _, values in groups for value in values]
    ticks = nice_ticks(min(every), max(every), 5)
    edges = np.linspace(ticks[0], ticks[-1], bins + 1)
    left, right, row, top = 12, 16, 66, 2
    height = top + row * len(groups) + 36
    x_at = scale(ticks[0], ticks[-1], left, WIDTH - right)
    tallest = max(int(np.histogram(values, edges)[0].max()) for _, _, values in groups)
    parts = []
    for index, (name, style, values) in enumerate(groups):
        floor = top + row * (index + 1)
        parts.append(
            f'<text class="end {style}" x="{left}" y="{floor - row + 14}">{escape(name)}</text>'
        )
        parts.append(
            f'<line class="axis" x1="{left}" x2="{WIDTH - right}" y1="{floor}" y2="{floor}"/>'
        )
        for count, low, high in zip(
            np.histogram(values, edges)[0], edges[:-1], edges[1:], strict=True
        ):
            if not count:
                continue
            tall = (row - 22) * count / tallest
            hint = escape(
                f"{name}: {count} client{'s' * int(count > 1)} between {low:.1f} and {high:.1f}"
            )
            parts.append(
                f'<rect class="fill {style}" x="{x_at(low) + 0.6:.1f}" y="{floor - tall:.1f}" '
                f'width="{x_at(high) - x_at(low) - 1.2:.1f}" '
                f'height="{tall:.1f}"><title>{hint}</title></rect>'
            )
        mean = float(np.mean(values))
        parts.append(
            f'<line class="mark" x1="{x_at(mean):.1f}" x2="{x_at(mean):.1f}" '
            f'y1="{floor - row + 20}" y2="{floor}">'
            f"<title>{escape(name)}: mean {mean:.1f}</title></line>"
        )
    for tick in ticks:
        parts.append(
            f'<text class="tick" x="{x_at(tick):.1f}" y="{height - 20}" '
            f'text-anchor="middle">{plain(tick)}</text>'
        )
    parts.append(
        f'<text class="label" x="{(left + WIDTH - right) / 2}" y="{height - 4}" '
        f'text-anchor="middle">{what}</text>'
    )
    return svg(WIDTH, height, title, parts)


def bubbles(
    clients: Sequence[tuple[str, dict[str, int]]], class_names: Sequence[str], *, title: str
) -> Markup:
    """Return who holds what: a disc's area is a number of images. Clients are rows, or columns
    where there are many."""
    most = max((count for _, counts in clients for count in counts.values()), default=0)
    if not most:
        return Markup("")
    rows, columns = [name for name, _ in clients], list(class_names)
    held = [
        (y, columns.index(name), n)
        for y, (_, counts) in enumerate(clients)
        for name, n in counts.items()
        if n
    ]
    upright = len(rows) > max(24, 2 * len(columns))
    if upright:
        rows, columns, held = columns, rows, [(y, x, n) for x, y, n in held]
    tall = 22.0 if len(rows) > 20 else 27.0
    left = 14 + min(180.0, 6.2 * max(map(len, rows)))
    slant = min(110.0, 4.4 * max(map(len, columns)))
    aside = 0.95 * slant + 8  # the last slanted label stands out to the right
    cell = max(8.0, min(60.0, (PAGE_WIDTH - left - aside) / len(columns)))
    label_every = math.ceil(12 / cell)
    head = 12 + slant
    width = max(WIDTH, left + cell * len(columns) + aside)
    height = head + tall * len(rows) + 6
    largest = min(max(cell, 11), tall) / 2 - 0.5
    right = left + cell * len(columns)
    parts = []
    for index, name in enumerate(columns):
        x = left + cell * (index + 0.5)
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{head - 3:.1f}" '
            f'y2="{height - 6:.1f}"/>'
        )
        if index % label_every == 0:
            place = f'transform="translate({x + 3:.1f} {head - 7:.1f}) rotate(-48)"'
            parts.append(
                '<text class="tick" '
                f"{place}>{escape(_short(name))}<title>{escape(name)}</title></text>"
            )
    for index, name in enumerate(rows):
        y = head + tall * (index + 0.5)
        parts.append(
            f'<line class="grid" x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        place = f'x="{left - 6:.1f}" y="{y + 3.5:.1f}" text-anchor="end"'
        parts.append(
            f'<text class="name" {place}>{escape(_short(name))}<title>{escape(name)}</title></text>'
        )
    for row, column, count in held:
        x, y = left + cell * (column + 0.5), head + tall * (row + 0.5)
        client, name = (columns[column], rows[row]) if upright else (rows[row], columns[column])
        hint = escape(f"{client}: {count} × {name}")
        radius = max(1.0, largest * math.sqrt(count / most))
        parts.append(
            f'<circle class="bubble" cx="{x:.1f}" cy="{y:.1f}" '
            f'r="{radius:.2f}"><title>{hint}</title></circle>'
        )
    return svg(width, height, title, parts, fixed=True)


def _short(name: str) -> str:
    return name if len(name) <= 26 else name[:25] + "…"


def value_bars(
    rows: Sequence[tuple[str, str, float]], *, title: str, text: Callable[[float], str]
) -> Markup:
    """Return one horizontal bar from 0 a row ((name, CSS class, value)), its value written at its
    end."""
    rows = [row for row in rows if not math.isnan(row[2])]
    if not rows:
        return Markup("")
    right, bar, gap = 62, 11, 25
    x_at = scale(0, max(value for _, _, value in rows) or 1, 0, WIDTH - right)
    parts = []
    for index, (name, style, value) in enumerate(rows):
        y = 6 + index * (bar + gap)
        parts.append(f'<text class="name" x="0" y="{y + 8}">{escape(name)}</text>')
        parts.append(
            f'<rect class="fill {style}" x="0" y="{y + 14}" width="{max(x_at(value), 1):.1f}" '
            f'height="{bar}" rx="2"/>'
        )
        parts.append(
            f'<text class="value" x="{x_at(value) + 6:.1f}" '
            f'y="{y + 23}">{escape(text(value))}</text>'
        )
    return svg(WIDTH, 6 + len(rows) * (bar + gap), title, parts)


def _with_spread(one: Series) -> list[tuple[tuple[float, float], float]]:
    spreads = one.spread or [0.0] * len(one.points)
    return [
        (point, 0.0 if math.isnan(s) else s) for point, s in zip(one.points, spreads, strict=True)
    ]


def _apart(places: list[float], distance: float, low: float, high: float) -> list[float]:
    """Return the places, moved as little as needed to stand `distance` apart, inside [low, high] as
    far as there is room."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = list(places)
    for above, below in zip(order, order[1:], strict=False):
        moved[below] = max(moved[below], moved[above] + distance)
    if moved[order[-1]] > high:
        moved[order[-1]] = high
        for below, above in zip(order[::-1], order[-2::-1], strict=False):
            moved[above] = min(moved[above], moved[below] - distance)
    return [max(low, place) if index == order[0] else place for index, place in enumerate(moved)]
