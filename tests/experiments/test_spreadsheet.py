"""CSV for spreadsheets: no text of somebody else's is a formula, and numbers stay numbers."""

import csv
import io
import json

import pytest

from experiments.reporting.grids import Grid, grid_as_csv
from experiments.reporting.runs import read_run
from experiments.run_folder import RunFolder
from experiments.spreadsheet import cell, csv_text, text_of


@pytest.mark.parametrize(
    "text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r\n=1", "=HYPERLINK(0)"]
)
def test_a_formula_is_quoted(text):
    made = cell(text)
    assert made.startswith("'") and made[1] in "=+-@"
    assert text_of(made) == text.strip()
    (row,) = csv.reader(io.StringIO(csv_text([["a", text]])))
    assert row == ["a", made]


@pytest.mark.parametrize(
    "value", [-1.5, 3, 0.0, "-1.5", "+0.53 ± 0.21", "-3e-05", "72.4 ± 0.5 *", "1,234", "-inf", ""]
)
def test_a_number_stays_a_number(value):
    assert cell(value) == value


def test_texts_are_short_lines():
    assert cell("no\x1b[31mto\nx") == "noto x"
    assert len(cell("d" * 5_000_000).encode()) == 200 and cell("clinic-a") == "clinic-a"
    assert text_of("'quoted'") == "'quoted'"


def test_the_tables_of_a_report():
    grid = Grid(["method", "=x"], [[("@evil", ""), ("+0.5 ± 0.1", "best")]], 1)
    assert grid_as_csv(grid) == "method,'=x\n'@evil,+0.5 ± 0.1\n"


def test_clients_csv_is_read_again(tmp_path):
    """A domain that would be a formula, and one of a megabyte, longer than Python's own csv
    reads."""
    domains = ["=cmd()", "d" * 2**20, "plain"]
    folder = RunFolder(tmp_path)
    folder.table = [
        {"id": i, "domain": d, "train_images": 5, "test_images": 2} for i, d in enumerate(domains)
    ]
    folder.client_accuracy(
        [{"id": i, "domain": d, "personal.local": 50.0} for i, d in enumerate(domains)]
    )
    (tmp_path / "config.yaml").write_text("method: {name: promptfl}\n")
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"kind": "eval", "round": 0}) + "\n")
    text = (tmp_path / "clients.csv").read_text()
    assert "0,'=cmd(),5,2,personal,50.0" in text and len(text) < 1000
    rows = read_run(tmp_path).clients
    assert [row["domain"] for row in rows] == ["=cmd()", "d" * 197 + "…", "plain"]
    assert [row["local"] for row in rows] == [50.0] * 3
