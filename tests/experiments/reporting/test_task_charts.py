"""Runs over several tasks: their figures in tables, the matrix and the curves on pages."""

import json
import re

import pytest

from experiments import report
from experiments.callbacks.console import accuracy_table
from experiments.reporting import read_run, write_report
from fedpgp.evaluation.lifelong import lifelong_summary
from tests.helpers.written import page, write_run

MATRICES = {
    "zero_shot": [[40.0, 30.0, 20.0], [39.0, 30.0, 20.0], [38.0, 29.0, 20.0]],
    "global": [[60.0, 31.0, 21.0], [50.0, 61.0, 22.0], [45.0, 55.0, 62.0]],
    "personal": [[80.0, 32.0, 23.0], [70.0, 81.0, 24.0], [63.0, 72.0, 85.0]],
}


def task_run(path, method="fedpgp", seed=1, more=0.0, status="finished"):
    """A run over three tasks; ``more`` is added to all of its personal accuracies."""
    write_run(path, method, seed, status=status, protocol={"name": "lifelong"}, novel=False)
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "eval" and line["round"] in (2, 4, 6):
            row = line["round"] // 2 - 1
            line["task"] = row + 1
            line["tasks"] = {model: matrix[row] for model, matrix in MATRICES.items()}
            line["tasks"]["personal"] = [value + more for value in line["tasks"]["personal"]]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    names = ["noto", "<fluent>", "openmoji"]
    table = json.loads((path / "partition.json").read_text())
    table["tasks"] = [{"name": name, "classes": [], "last_round": 2} for name in names]
    (path / "partition.json").write_text(json.dumps(table))
    if (path / "summary.json").exists():
        summary = json.loads((path / "summary.json").read_text())
        summary["lifelong"] = lifelong_summary(lines)
        (path / "summary.json").write_text(json.dumps(summary))
    return path


def test_the_page_draws_the_matrix_and_the_curves(tmp_path):
    run = task_run(tmp_path / "run")
    text = write_report(run).read_text()
    shown = page(run / "report.html").text
    assert "Task by task" in shown
    for name, key in (("zero-shot", "zero_shot"), ("personal prompt", "personal")):
        (drawn,) = re.findall(
            rf'<svg[^>]*aria-label="{name}: accuracy on each task">.*?</svg>', text, re.S
        )
        for t, row in enumerate(MATRICES[key]):
            for s, value in enumerate(row):
                after, on = (["noto", "&lt;fluent&gt;", "openmoji"][i] for i in (t, s))
                assert f"after {after}, on {on}: {value:.1f} %" in drawn
        assert drawn.count('stroke="currentColor"') == 3  # the task just learned
        (curves,) = re.findall(
            rf'<svg[^>]*aria-label="{name}: each task over time">.*?</svg>', text, re.S
        )
        assert curves.count("<polyline") == 3
    assert f"personal prompt: {(63 + 72 + 85) / 3:.1f} %, after task 3" in text
    forgetting = (80 - 63 + 81 - 72) / 2
    assert f"{forgetting:.1f}" in shown and f"−{forgetting:.1f}" in shown  # backward
    plain = tmp_path / "plain"
    write_run(plain)
    assert "Task by task" not in write_report(plain).read_text()


def test_a_run_under_way_has_what_there_is(tmp_path):
    run = task_run(tmp_path / "run")
    (run / "summary.json").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(x for x in lines if json.loads(x)["round"] < 6))
    found = read_run(run)
    assert found.figure("personal", "last") == pytest.approx((70 + 81) / 2)
    assert found.figure("personal", "forgetting") == 10.0 and len(found.matrix("global")) == 2
    assert "Task by task" in write_report(run).read_text()


def test_tables_have_the_figures_and_less_forgetting_is_better(tmp_path, capsys):
    for seed in (1, 2):
        task_run(tmp_path / f"fedpgp_{seed}", "fedpgp", seed)
        other = task_run(tmp_path / f"promptfl_{seed}", "promptfl", seed)
        summary = json.loads((other / "summary.json").read_text())
        summary["lifelong"]["personal"] |= {"last": 60.0, "average": 60.0, "forgetting": 5.0}
        (other / "summary.json").write_text(json.dumps(summary))
    capsys.readouterr()
    assert report.main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    header = next(line for line in lines if "forgetting" in line)
    assert [word for word in header.split() if word in ("last", "average", "forgetting")] == [
        "last",
        "average",
        "forgetting",
    ]
    fedpgp, promptfl = (
        next(line for line in lines if line.startswith(name)) for name in ("FedPGP", "PromptFL")
    )
    assert "13.00 ± 0.00*" not in fedpgp and "5.00 ± 0.00*" in promptfl
    assert "73.33 ± 0.00*" in fedpgp
    target = tmp_path / "page.html"
    assert report.main([str(tmp_path), "--format", "html", "--out", str(target)]) == 0
    text = target.read_text()
    assert 'aria-label="Mean accuracy on the tasks so far, %"' in text
    assert "best" in page(target).text and "accuracy at the end" in text


def test_the_terminal_stars_the_least_forgetting():
    blocks = {
        "zero_shot": {"local": 40.0, "last": 30.0, "forgetting": 2.0},
        "global": {"local": 50.0, "last": 40.0, "forgetting": 9.0},
        "personal": None,
    }
    table = accuracy_table(blocks, one_prompt=True)
    cells = {
        str(column.header).strip(): [str(cell) for cell in column.cells] for column in table.columns
    }
    assert cells["last"] == ["30.0 ", "40.0*"] and cells["forgetting"] == ["2.0*", "9.0 "]
