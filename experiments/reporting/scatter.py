"""The trade-off: local against novel (or unseen) accuracy, a named point a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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

Box = tuple[float, float, float, float]
_LETTER = 7.1  # width of a letter of a name, in the drawing's units
_FAR = (
    10,
    20,
    34,
    52,
    74,
)  # distances from its point at which a name is tried; beyond the first a line leads to it


@dataclass(frozen=True)
class Mark:
    """A named point of a scatter: its mean, its standard deviations, and the points it is the mean
    of."""

    name: str
    style: str
    mean: tuple[float, float]
    std: tuple[float, float]
    points: Sequence[tuple[float, float]]


def scatter(
    marks: Sequence[Mark],
    *,
    title: str,
    x_label: str,
    y_label: str,
    wide: bool = False,
    front: int = 0,
    x_text: Callable[[float], str] | None = None,
) -> Markup:
    """Means with whiskers of one standard deviation, and each seed as a small dot; the top right
    corner is best. `wide` takes the page's whole width. `front` draws the line of the means that no
    other beats in both: 1 where a larger x is better, -1 where a smaller one is. `x_text` words an
    x, whose ticks are then whole numbers."""
    marks = [mark for mark in marks if not any(map(math.isnan, mark.mean))]
    if not marks:
        return Markup("")
    (width, height), right, top, bottom = (PAGE_WIDTH, 560) if wide else (WIDTH, 300), 14, 10, 36
    spreads = [tuple(0 if math.isnan(s) else s for s in mark.std) for mark in marks]
    every = [p for mark in marks for p in (*mark.points, mark.mean)]
    every += [
        (m.mean[0] + k * s[0], m.mean[1] + k * s[1])
        for m, s in zip(marks, spreads, strict=True)
        for k in (-1, 1)
    ]
    x_ends = min(x for x, _ in every), max(x for x, _ in every)
    x_ticks = nice_ticks(*x_ends, 5, whole=x_text is not None)
    said = x_text or (lambda x: f"{x:.2f}")
    y_ticks = nice_ticks(min(y for _, y in every), max(y for _, y in every), 5)
    left = margin(y_ticks, 28) + 14  # beside the axis' name
    x_at = scale(x_ticks[0], x_ticks[-1], left, width - right)
    y_at = scale(y_ticks[0], y_ticks[-1], height - bottom, top)
    frame = (left, width - right, height, bottom, x_label)
    parts = axes(x_ticks, y_ticks, x_at, y_at, *frame, x_text=x_text or plain)
    if front:
        line = [f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in _front(marks, front)]
        parts.append(f'<polyline class="line zero_shot" points="{" ".join(line)}"/>')
    parts.append(
        f'<text class="label" transform="translate(11 {(top + height - bottom) / 2:.0f}) '
        f'rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    centres, taken = [], []
    for mark, (sx, sy) in zip(marks, spreads, strict=True):
        x, y = mark.mean
        cx, cy = x_at(x), y_at(y)
        centres.append((cx, cy))
        for px, py in mark.points:
            parts.append(
                f'<circle class="seed {mark.style}" cx="{x_at(px):.1f}" cy="{y_at(py):.1f}" '
                'r="2.2"/>'
            )
        if sx or sy:
            for x1, x2, y1, y2 in (
                (x_at(x - sx), x_at(x + sx), cy, cy),
                (cx, cx, y_at(y + sy), y_at(y - sy)),
            ):
                taken.append((x1 - 1, y1 - 1, x2 + 1, y2 + 1))
                parts.append(
                    f'<line class="whisker {mark.style}" x1="{x1:.1f}" x2="{x2:.1f}" '
                    f'y1="{y1:.1f}" y2="{y2:.1f}"/>'
                )
        around = "" if x_text else f" ± {sx:.2f}"
        hint = escape(f"{mark.name}: {x_label} {said(x)}{around}, {y_label} {y:.2f} ± {sy:.2f}")
        parts.append(dot(mark.style, cx, cy, 5, hint))
    room = (left + 2, top - 4, width - 2, height - bottom - 2)
    places = label_places(centres, taken, [_LETTER * len(mark.name) for mark in marks], room)
    for mark, (cx, cy), (x, y) in zip(marks, centres, places, strict=True):
        long = _LETTER * len(mark.name)
        near = (min(max(cx, x), x + long), min(max(cy, y - 10), y + 3))
        if math.dist(near, (cx, cy)) > 1.5 * _FAR[0]:
            parts.append(
                f'<line class="lead {mark.style}" x1="{cx:.1f}" y1="{cy:.1f}" x2="{near[0]:.1f}" '
                f'y2="{near[1]:.1f}"/>'
            )
        parts.append(
            f'<text class="end {mark.style}" x="{x:.1f}" y="{y:.1f}">{escape(mark.name)}</text>'
        )
    return svg(width, height, title, parts, fixed=wide)


def _front(marks: Sequence[Mark], sign: int) -> list[tuple[float, float]]:
    """Return the means that no other beats in both, from the best x to the worst."""
    found: list[tuple[float, float]] = []
    for x, y in sorted((mark.mean for mark in marks), key=lambda m: (-sign * m[0], -m[1])):
        if not found or y > found[-1][1]:
            found.append((x, y))
    return found


def label_places(
    centres: Sequence[tuple[float, float]],
    whiskers: Sequence[Box],
    lengths: Sequence[float],
    room: Box,
) -> list[tuple[float, float]]:
    """Return where each point's name begins: as near as it can be without crossing whiskers, points
    or other names.

    Boxes are (left, top, right, bottom); a name takes 10 above and 3 below its place,
    and `lengths` to the right.
    """
    points = [(x - 6, y - 6, x + 6, y + 6) for x, y in centres]
    names: list[Box] = []
    for (x, y), long in zip(centres, lengths, strict=True):
        options = []
        for far in _FAR:
            across, down = far * 0.75, far * 0.75
            options += [
                (x + far, y + 4),
                (x - far - long, y + 4),
                (x - long / 2, y - far),
                (x - long / 2, y + far + 8),
            ]
            options += [(x + across, y - down), (x + across, y + down + 6)]
            options += [(x - across - long, y - down), (x - across - long, y + down + 6)]

        def cost(index: int, options: list = options, long: float = long) -> float:
            box = _box(options[index], long)
            crossed = sum(_overlap(box, other) > 0 for other in [*whiskers, *points])
            covered = sum(_overlap(box, other) for other in names)
            outside = box[0] < room[0] or box[1] < room[1] or box[2] > room[2] or box[3] > room[3]
            return index + 200 * crossed + 200 * (covered > 0) + covered + 1000 * outside

        best = options[min(range(len(options)), key=cost)]
        names.append(_box(best, long))
    return [(box[0], box[1] + 10) for box in names]


def _box(place: tuple[float, float], long: float) -> Box:
    return (place[0], place[1] - 10, place[0] + long, place[1] + 3)


def _overlap(one: Box, other: Box) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, across) * max(0.0, down)
