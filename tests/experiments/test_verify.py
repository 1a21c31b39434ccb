"""The command that verifies: cells of the published tables, samples, exit statuses."""

import json
import math

import pytest

from experiments.overrides import PATHS
from experiments.reporting.commands import single_command
from experiments.reporting.measured import measured_runs, name_of, selected
from experiments.settings import flatten
from experiments.verification.rerun import config_again, differing_settings
from experiments.verify import main, seconds_of, within
from fedpgp.build import check_config
from fedpgp.errors import FedPGPError


def test_published_cells_hold(tmp_path, capsys):
    """What is published is what this code computes: cells that take a second or two."""
    cells = ["lifelong_domain/prototype/1", "compare_all_vit/zero_shot/base2novel/1"]
    assert main([*cells, "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert [one["status"] in ("equal", "inside") for one in found] == [True, True]
    assert all(len(one["figures"]) > 10 for one in found)
    assert "2 of 2 runs: " in capsys.readouterr().out


def test_no_kept_run_has_a_path_of_a_machine():
    for run in measured_runs():
        flat = flatten(run.config)
        assert not [key for key in PATHS if flat.get(key)]
        assert not [key for key, value in flat.items() if str(value).startswith("/")], run.path
        assert "/" not in single_command(run.config).replace("python -m", "")


def test_every_kept_run_can_be_made_again(tmp_path):
    """Its settings are valid, and are those that its command makes."""
    one_of_each = {(name_of(run), run.choice("protocol")): run for run in measured_runs()}
    assert len(one_of_each) > 3
    for run in one_of_each.values():
        check_config(config_again(run, tmp_path))
        assert not differing_settings(run.config, single_command(run.config)), run.path


def test_a_cell_is_named_by_its_words():
    runs = selected("lifelong_domain/fedpgp")
    assert {run.choice("method") for run in runs} == {"fedpgp"} and len(runs) >= 3
    assert {run.seed for run in selected("fedpgp/lifelong/emoji/2")} == {2}
    (one,) = {run.config["privacy"]["epsilon"] for run in selected("privacy.epsilon=8/fedpgp")}
    assert one == 8
    with pytest.raises(FedPGPError, match="no run that is kept has fedpgq"):
        selected("fedpgq/base2novel")


def test_a_budget_passes_over_what_does_not_fit():
    runs = selected("lifelong_domain/seed=1")
    slowest = max(runs, key=lambda run: run.summary["seconds"]["total"])
    first = [(slowest, "slow"), *((run, "other") for run in runs)]
    least = min(run.summary["seconds"]["total"] for run in runs)
    assert next(within(first, math.inf))[1] == "slow"
    assert "slow" not in [name for _, name in within(first, least + 1)]
    assert [seconds_of(text) for text in ("90s", "20m", "1.5h", "7")] == [90, 1200, 5400, 7]
    with pytest.raises(FedPGPError, match="--budget soon"):
        seconds_of("soon")


def test_bad_input_is_one_line(tmp_path, capsys):
    for words in (
        [],
        ["--all"],
        ["no/such/cell"],
        [str(tmp_path)],
        ["--submission", str(tmp_path / "nothing")],
    ):
        assert main(words) == 2
        assert capsys.readouterr().err.startswith("error: ")
