"""What the charts are drawn with: scales, axes, the marks of a style, the frame of an SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup
from markupsafe import escape as escape_markup

from fedpgp.plain_text import one_line

WIDTH = 348
"""Of a chart that stands beside others."""
PAGE_WIDTH = 1030
"""Of a chart as wide as the page."""


def escape(text: object) -> Markup:
    """Return a text as it can stand in a drawing: no markup, and no characters that are not seen
    or turn the direction of others."""
    return escape_markup(text if isinstance(text, Markup) else one_line(str(text)))


def nice_ticks(low: float, high: float, count: int = 4, whole: bool = False) -> list[float]:
    """About `count` round numbers that cover [low, high]: steps of 1, 2, 2.5 or 5 times a
    power of ten. Equal values get an axis around them that is 2 % of their size (1 unit
    below 50) and can be read."""
    if low == high and not whole:
        half = max(0.5, abs(low) / 100)
        low, high = max(low - half, 0) if low >= 0 else low - half, high + half
    span = max(high - low, 1e-3)
    power = 10 ** math.floor(math.log10(span / count))
    step = min((s * power for s in (1, 2, 2.5, 5, 10, 20)), key=lambda s: abs(span / s - count))
    if whole:
        step = max(1, math.ceil(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 10) for k in range(first, max(last, first + 1) + 1)]


def margin(ticks: Sequence[float], least: int = 36) -> int:
    """Return the room left of an axis that its ticks take."""
    return max(least, 12 + math.ceil(6.4 * max(len(plain(tick)) for tick in ticks)))


def plain(value: float) -> str:
    """Return a tick's text: no needless zeros."""
    return f"{value:,.10g}"


def dot(style: str, x: float, y: float, radius: float, hint: str = "") -> str:
    """Return a filled mark: its shape is one more thing that tells lines apart (dashed: square,
    dotted: triangle, dashdot: triangle on its point, longdash: bar, a global prompt beside its
    method's personal one: diamond)."""
    inside = f"<title>{hint}</title>" if hint else ""
    shapes = {
        "dashed": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        "dotted": ((0, -1.3), (1.3, 1), (-1.3, 1)),
        "dashdot": ((0, 1.3), (-1.3, -1), (1.3, -1)),
        "longdash": ((-1.5, -0.6), (1.5, -0.6), (1.5, 0.6), (-1.5, 0.6)),
    }
    shapes["shared"] = ((0, -1.5), (1.5, 0), (0, 1.5), (-1.5, 0))
    corners = next((shapes[word] for word in reversed(style.split()) if word in shapes), None)
    if corners is None:
        return (
            f'<circle class="dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">{inside}</circle>'
        )
    points = " ".join(f"{x + radius * a:.1f},{y + radius * b:.1f}" for a, b in corners)
    return f'<polygon class="dot {style}" points="{points}">{inside}</polygon>'


def swatch(style: str) -> Markup:
    """Return the line and mark of a style, for a legend."""
    line = f'<polyline class="line {style}" points="1,6 27,6"/>'
    mark = "" if style == "zero_shot" else dot(style, 14, 6, 3.4)
    return Markup(f'<svg class="swatch" viewBox="0 0 28 12" aria-hidden="true">{line}{mark}</svg>')


def scale(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (stop - start)


def axes(
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    x_at: Callable[[float], float],
    y_at: Callable[[float], float],
    left: float,
    right: float,
    height: float,
    bottom: float,
    x_label: str,
    y_text: Callable[[float], str] = plain,
    x_text: Callable[[float], str] = plain,
) -> list[str]:
    parts = []
    for tick in y_ticks:
        y = y_at(tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{left - 6}" y="{y + 3.5:.1f}" '
            f'text-anchor="end">{escape(y_text(tick))}</text>'
        )
    for tick in x_ticks:
        parts.append(
            f'<text class="tick" x="{x_at(tick):.1f}" y="{height - bottom + 15}" '
            f'text-anchor="middle">{escape(x_text(tick))}</text>'
        )
    parts.append(
        f'<text class="label" x="{(left + right) / 2:.0f}" y="{height - 4}" '
        f'text-anchor="middle">{escape(x_label)}</text>'
    )
    return parts


def svg(
    width: float, height: float, title: str, parts: Sequence[str], fixed: bool = False
) -> Markup:
    """`fixed` keeps the drawn size (the page scrolls it sideways); otherwise the drawing
    shrinks with its column."""
    size = f' width="{width:.0f}" height="{height:.0f}" class="fixed"' if fixed else ""
    return Markup(  # every text above went through escape()
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}"{size} role="img" '
        f'aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
