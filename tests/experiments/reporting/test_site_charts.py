"""The drawings of the results site."""

import re

import pytest

from experiments.reporting.scatter import Mark, scatter
from experiments.reporting.site_charts import seed_dots


def line(points, front):
    """How many points the line of a chart joins."""
    marks = [Mark(str(i), f"c{i}", point, (0.0, 0.0), []) for i, point in enumerate(points)]
    text = str(scatter(marks, title="t", x_label="x", y_label="y", front=front))
    return len(re.search(r'<polyline class="line zero_shot" points="([^"]*)"', text)[1].split())


@pytest.mark.parametrize(
    ("points", "front", "joined"),
    [
        ([(1, 3), (2, 2), (1.5, 1), (3, 1)], 1, 3),
        ([(1, 3), (2, 2), (1.5, 1), (3, 1)], -1, 1),
        ([(1, 1), (2, 2), (3, 3)], 1, 1),
        ([(1, 1), (2, 2), (3, 3), (3, 2)], -1, 3),
    ],
)
def test_the_line_joins_what_no_other_beats_in_both(points, front, joined):
    assert line(points, front) == joined


def test_a_dot_a_seed_between_the_ends_of_its_column():
    text = str(seed_dots({1: 10.0, 2: 20.0, 3: 15.0}, 10.0, 20.0))
    assert re.findall(r'cx="([\d.]+)"', text) == ["3.0", "51.0", "27.0"]
    assert not seed_dots({1: 10.0}, 10.0, 20.0) and not seed_dots({1: 1.0, 2: 1.0}, 1.0, 1.0)
