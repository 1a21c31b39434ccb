"""The command that verifies: cells of the published tables, samples, exit statuses."""

import json
import math

import pytest
import yaml

from experiments.reporting.commands import single_command
from experiments.reporting.measured import measured_runs, name_of, selected
from experiments.settings import flatten
from experiments.verification.rerun import (
    config_again,
    differing_settings,
    why_not_comparable,
)
from experiments.verify import main, seconds_of, within
from fedpgp.build import check_config
from fedpgp.errors import FedPGPError
from tests.helpers.written import write_run
from tools.keep_runs import without_paths


def test_a_published_cell_holds(tmp_path):
    """What is published is what this code computes: a cell that takes a second or two."""
    record = tmp_path / "found.json"
    assert main(["lifelong_domain/prototype/tiny/1", "--json", str(record)]) == 0
    (found,) = json.loads(record.read_text())
    assert found["status"] in ("equal", "inside") and len(found["figures"]) > 10


def test_a_sample_is_taken_as_far_as_the_budget_goes(capsys):
    """Of all tables: what took less than 0.6 s, which is zero-shot CLIP alone."""
    assert main(["--all", "--budget", "0.6s"]) == 0
    verdict, *_, count = capsys.readouterr().out.splitlines()
    assert "method=zero_shot" in verdict
    assert count.split(":")[0].endswith(f" of {len(comparable())} runs")


def comparable():
    return [run for run in measured_runs() if not why_not_comparable(run)]


def test_no_kept_run_has_a_path_of_a_machine():
    for run in measured_runs():
        flat = flatten(run.config)
        assert run.config == without_paths(run.config) and not flat.get("init_from")
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


def test_what_a_folder_says_is_printed_without_its_escapes(tmp_path, capsys):
    folder = tmp_path / "run"
    write_run(folder, "fedpgp", 1)
    path = folder / "config.yaml"
    hostile = {"lr": "\x1b[2Jhigh\nrun: equal", "command": "python -m experiments.run lr=3"}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | hostile))
    main([str(folder)])
    main(["--submission", str(folder)])
    said = capsys.readouterr().out
    assert "lr: high run: equal there, 3 by its command" in said
    assert "\x1b[2J" not in said and "\nrun: equal" not in said
