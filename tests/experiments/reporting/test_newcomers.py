"""The table and the picture of newcomers, from what summaries have."""

from pathlib import Path

import pytest

from experiments.reporting.newcomers import newcomer_chart, newcomer_grid, of_newcomers
from experiments.reporting.runs import Run


def row(way, budget, steps, unseen, size=0):
    return {"way": way, "budget": budget, "steps": steps, "unseen": unseen, "bytes_up": size} | {
        "bytes_down": 2 * size
    }


def run(seed, rows, trained=60.0):
    block = {"trained": trained, "results": rows}
    return Run(Path("run"), {"seed": seed}, {"onboarding": block}, [], [])


RUNS = [
    run(
        seed,
        [
            row("global", 0, 0, 40.0 + seed),
            row("topk", 0, 0, 46.0 + seed, 100),
            row("topk", 4, 1, 47.0, 100),
            row("topk", 4, 5, 48.0 + seed, 100),
            row("topk", None, 1, 50.0, 100),
            row("memory", 0, 0, 40.0 + seed),
            row("memory", 4, 0, 55.0),
        ],
    )
    for seed in (0, 2)
]


def texts(grid):
    return [[text for text, _ in cells] for cells in grid.rows]


def test_the_table_has_a_row_a_way_and_steps_and_a_column_a_budget():
    grid = newcomer_grid(RUNS, "Newcomers, FedPGP")
    assert grid.header == ["way", "steps", "0", "4", "all", "bytes"]
    assert texts(grid) == [
        ["global", "0", "41.00 ± 1.41", "–", "–", "0 B"],
        ["topk", "1", "47.00 ± 1.41", "47.00 ± 0.00", "50.00 ± 0.00", "300 B"],
        ["topk", "5", "47.00 ± 1.41", "49.00 ± 1.41", "–", "300 B"],
        ["memory", "0", "41.00 ± 1.41", "55.00 ± 0.00", "–", "0 B"],
    ]
    assert grid.breaks == {1, 3}
    assert grid.heading.startswith("Newcomers, FedPGP: accuracy in %")
    assert grid.heading.endswith("trained clients have 60.00 ± 0.00")


def test_a_way_with_steps_but_without_images_has_its_figures():
    rows = [row("global", 0, 0, 40.0), row("hyperfield", 0, 8, 44.0), row("hyperfield", 4, 8, 45.0)]
    table = texts(newcomer_grid([run(1, rows)]))
    assert table[1][:4] == ["hyperfield", "8", "44.00", "45.00"]
    assert "hyperfield: 44.0 %, images a class 0" in newcomer_chart([run(1, rows)])[0]
    alone = texts(newcomer_grid([run(1, rows[:2])]))
    assert alone[1][:3] == ["hyperfield", "8", "44.00"]


def test_the_picture_has_a_line_a_way_after_the_most_steps():
    chart, legend = newcomer_chart(RUNS)
    names = ["topk", "memory", "global prompt", "trained clients"]
    assert [name for name, _ in legend] == names
    assert "topk: 49.0 ± 1.4 %, images a class 4" in chart and "topk: 47.0 ± 1.4" in chart
    assert "memory: 55.0 %, images a class 4" in chart
    one_budget = [run(1, [row("global", 0, 0, 40.0), row("memory", 4, 0, 50.0)])]
    assert newcomer_chart(one_budget)[1]
    assert newcomer_chart([run(1, [row("global", 0, 0, 40.0)])]) == ("", [])


@pytest.mark.parametrize("summary", [None, {}, {"onboarding": 3}, {"onboarding": {"results": 3}}])
def test_a_run_without_newcomers_has_neither(summary):
    plain = Run(Path("run"), {"seed": 1}, summary, [], [])
    assert newcomer_grid([plain]) is None and of_newcomers([plain]) is None
    rubbish = run(1, [3, {}, row("topk", "x", 0, "y"), row("topk", 4, "z", 1.0)])
    assert newcomer_grid([rubbish]) is None
