"""Which colour, line and mark a row has: the same on every page, and none twice on one page."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.reporting.tables import Row
from experiments.reporting.titles import in_order

COLOURS = 10
_LINES = ("", " dashed", " dotted", " dashdot", " longdash")
"""Lines; their marks: circle, square, triangle, triangle reversed, bar."""


def row_styles(rows: Sequence[Row]) -> list[str]:
    """CSS classes of each row. The models of one method have the models' own colours, as on
    a run's page. Of several methods each has its own; further rows of a method take styles
    that no method of the page has, and its global prompt beside its personal one is thin
    with a diamond (`shared`)."""
    setups = [tuple(row.labels.items()) for row in rows]
    trained = [index for index, row in enumerate(rows) if row.model != "zero_shot"]
    if len({setups[index] for index in trained}) <= 1:
        return [row.model for row in rows]
    methods = [name for name in in_order() if name != "zero_shot"]
    methods += sorted({rows[index].labels["method"] for index in trained} - set(methods))
    place: dict[tuple, int] = {}
    for index in trained:  # first each method's own place
        slot = methods.index(rows[index].labels["method"])
        if slot not in place.values() and setups[index] not in place:
            place[setups[index]] = slot
    for index in trained:  # then others where there is room
        if setups[index] not in place:
            place[setups[index]] = next(
                slot for slot in range(len(rows) + len(methods)) if slot not in place.values()
            )
    personal = {setups[index] for index in trained if rows[index].model == "personal"}
    return [
        _style(place[setup]) + " shared" * (row.model == "global" and setup in personal)
        if row.model != "zero_shot"
        else "zero_shot"
        for row, setup in zip(rows, setups, strict=True)
    ]


def _style(slot: int) -> str:
    return f"c{slot % COLOURS}{_LINES[slot // COLOURS % len(_LINES)]}"
