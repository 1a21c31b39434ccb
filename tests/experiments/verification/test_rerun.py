"""Runs made again: a run holds to the bit, and what was changed by hand is found."""

import json
import math
import shlex
import shutil
from dataclasses import replace

import pytest
import yaml

from experiments import runner
from experiments.overrides import LOCAL, flower_command
from experiments.reporting import read_run
from experiments.reporting.commands import single_command
from experiments.reporting.measured import selected
from experiments.verification.comparison import (
    EQUAL,
    INSIDE,
    NOT_COMPARABLE,
    OUTSIDE,
    compare,
    figures_of,
    reason_of,
    spread_of,
    status_of,
)
from experiments.verification.rerun import (
    differing_settings,
    places_elsewhere,
    verify,
    why_not_comparable,
    wrong_budget,
)
from strategies.checkpoint import checkpoints, read_checkpoint, save_checkpoint
from tests.helpers.small import small_config, small_federation

WORDS = [
    *("runtime=inline", "protocol=personal", "partition=iid", "clients=6", "rounds=2"),
    *("participation=0.67", "local_epochs=1", "batch_size=4", "device=cpu", "dtype=float64"),
    *("method=promptfl", "lr=0.05"),
]


def small_run(folder, *overrides):
    """A run of the small federation, with the command that makes it."""
    words = [word for word in WORDS if word.partition("=")[0] not in _keys(overrides)]
    config = small_config(folder, *words, *overrides)
    command = shlex.join(["python", "-m", "experiments.run", *words, *overrides])
    runner.start(config, command, federation_of=small_federation)
    return folder


def _keys(overrides):
    return {override.partition("=")[0] for override in overrides}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("verify") / "run")


@pytest.fixture
def copy(made, tmp_path):
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def edited(path, change):
    """A JSON or YAML file after a change by hand."""
    loads, dumps = (
        (json.loads, json.dumps) if path.suffix == ".json" else (yaml.safe_load, yaml.safe_dump)
    )
    value = loads(path.read_text())
    change(value)
    path.write_text(dumps(value))


def test_a_run_made_again_is_equal_to_the_bit(made, tmp_path, small):
    found = verify(read_run(made), "run", tmp_path / "again")
    assert found.status == EQUAL and not found.settings and not found.environment
    assert found.details[0] == found.details[1] > 0
    assert {figure.name for figure in found.figures} >= {"personal.local"}
    assert read_run(tmp_path / "again").summary["accuracy"] == read_run(made).summary["accuracy"]


def test_a_changed_figure_is_outside(copy, tmp_path, small):
    def change(summary):
        summary["accuracy"]["personal"]["local"] += 2.5

    edited(copy / "summary.json", change)
    found = verify(read_run(copy), "run", tmp_path / "again")
    (wrong,) = [figure for figure in found.figures if not figure.inside]
    assert found.status == OUTSIDE and wrong.name == "personal.local"
    assert wrong.difference == pytest.approx(-2.5) and "personal.local" in found.reason


def test_a_run_of_other_weights_is_not_comparable(copy, tmp_path, small):
    """As a run of the model that an earlier version shipped under the same name."""
    edited(copy / "summary.json", lambda summary: summary["accuracy"]["personal"].update(local=1.0))
    newest = checkpoints(copy / "checkpoint")[-1]
    tensors, info = read_checkpoint(newest)
    about = {key: value for key, value in info.items() if key not in ("round", "sha256")}
    save_checkpoint(newest.parent, info["round"], tensors, about | {"model_sha256": "0" * 64})
    found = verify(read_run(copy), "run", tmp_path / "again")
    assert found.status == NOT_COMPARABLE and "weights are not those" in found.reason


def test_a_changed_setting_is_named(copy, tmp_path, small):
    edited(copy / "config.yaml", lambda config: config.update(lr=5.0, seed=3))
    found = verify(read_run(copy), "run", tmp_path / "again")
    assert found.status == OUTSIDE
    assert set(found.settings) == {("lr", 5.0, 0.05), ("seed", 3, 0)}
    assert "settings are not those that its command makes: " in found.reason


def test_a_removed_client_is_outside(copy, tmp_path, small):
    edited(copy / "config.yaml", lambda config: config.update(clients=5))
    found = verify(read_run(copy), "run", tmp_path / "again")
    assert found.status == OUTSIDE and found.settings == [("clients", 5, 6)]


def test_another_machine_may_round_and_seeds_may_spread(made, tmp_path):
    recorded = read_run(made).summary
    again = json.loads(json.dumps(recorded))
    again["accuracy"]["personal"]["local"] += 0.4
    figures, details = compare(recorded, again, {})
    assert status_of(figures, details) == INSIDE
    again["accuracy"]["personal"]["local"] += 1.0
    assert status_of(*compare(recorded, again, {})) == OUTSIDE
    assert status_of(*compare(recorded, again, {"personal.local": 1.5})) == INSIDE
    assert len(compare({**recorded, "accuracy": {}}, again, {})[0]) == 0  # all are newer
    del again["accuracy"]["personal"]["local"]
    assert status_of(*compare(recorded, again, {"personal.local": 1.5})) == OUTSIDE


def test_the_spread_is_that_of_the_seeds_alone(made, tmp_path):
    first = read_run(made)
    others = [read_run(small_run(tmp_path / str(seed), f"seed={seed}")) for seed in (1, 2)]
    other_setting = read_run(small_run(tmp_path / "lr", "lr=0.5", "seed=4"))
    one, two = (figures_of(run.summary)["personal.local"] for run in others)
    found = spread_of(first, [first, *others, other_setting])
    assert found["personal.local"] == pytest.approx(abs(one - two) / math.sqrt(2))
    wild = json.loads(json.dumps(first.summary))
    wild["accuracy"]["personal"]["local"] = 0.0
    assert spread_of(replace(first, summary=wild), [*others, other_setting]) == found
    assert spread_of(first, [other_setting]) == spread_of(first, [first, others[0]]) == {}


def test_what_cannot_be_made_again_is_not_comparable(copy, tmp_path):
    edited(copy / "config.yaml", lambda config: config["runtime"].update(name="flower"))
    found = verify(read_run(copy), "run", tmp_path / "again")
    assert found.status == NOT_COMPARABLE and "nodes" in found.reason
    edited(copy / "config.yaml", lambda config: config["runtime"].update(name="inline"))
    edited(copy / "config.yaml", lambda config: config["dataset"].update(name="no_such"))
    found = verify(read_run(copy), "run", tmp_path / "again")
    assert found.status == NOT_COMPARABLE and "no_such" in found.reason
    assert not (tmp_path / "again").exists()


def test_folders_of_another_machine_are_left_to_this_one(tmp_path):
    config = small_config("runs/x", f"runtime.cache_dir={tmp_path}", "dataset.root=/nobody/has")
    assert places_elsewhere(config) == ["dataset.root"]


def test_the_command_of_a_job_of_a_sweep():
    config = small_config("runs/x", "method=promptfl", "seed=2", "lr=0.5")
    started = "python -m experiments.run -m method=promptfl,coop seed=0,1,2 lr=0.5 run_dir=runs"
    command = single_command({**config, "command": started})
    assert command == "python -m experiments.run lr=0.5 method=promptfl seed=2"
    assert ("rounds", 3, 10) in differing_settings(config, command)
    swept = "python -m experiments.run -m experiment=compare_all_vit protocol=base2novel"
    config |= {"protocol": {"name": "base2novel"}}
    for how in ("", " hydra.sweep.dir=/home/me/runs"):
        words = single_command({**config, "command": swept + how}).split()[3:]
        assert words == [
            *("experiment=compare_all_vit", "protocol=base2novel", "method=promptfl", "seed=2")
        ]
    by_mode = "python -m experiments.run seed=0,1,2 hydra.mode=MULTIRUN"
    command = single_command({**config, "command": by_mode})
    assert command == "python -m experiments.run seed=2"


def test_a_command_that_leaves_the_precision_to_the_machine_gets_what_it_decided():
    """The report's command makes the same run on another machine."""
    config = small_config("runs/x", "dtype=bfloat16")
    started = "python -m experiments.run dtype=auto lr=0.5 run_dir=runs/x"
    command = single_command({**config, "command": started})
    assert command == "python -m experiments.run dtype=bfloat16 lr=0.5"
    differing = [
        [key for key, *_ in differing_settings(config, each) if key == "dtype"]
        for each in (started, command, command.replace("bfloat16", "float64"))
    ]
    assert differing == [[], [], ["dtype"]]
    swept = started.replace("lr=0.5", "-m seed=0,1")
    assert "dtype=bfloat16" in single_command({**config, "command": swept}).split()
    swept = "python -m experiments.run -m dtype=auto,float32"
    assert single_command({**config, "command": swept}).split()[3:] == ["dtype=bfloat16"]
    for make in (flower_command, lambda words: " ".join([LOCAL, "--clients", "2", *words])):
        told = single_command({**config, "command": make(["dtype=auto", "lr=0.5"])})
        assert told == make(["dtype=bfloat16", "lr=0.5"])


def test_the_command_of_a_part_of_a_protocol():
    config = small_config("runs/x", "protocol=leave_one_domain_out")
    started = "python -m experiments.run protocol=leave_one_domain_out"
    config["protocol"]["held_out"] = "noto"
    command = single_command({**config, "command": started})
    assert command == f"{started} protocol.held_out=noto"
    assert single_command({**config, "command": command}) == command


def test_a_run_of_very_many_clients_from_before_some_were_drawn(made):
    run = read_run(made)
    many = replace(run, summary={**run.summary, "clients": 1001})
    assert "all 1001 clients" in why_not_comparable(many)
    drawn = [{**row, "drawn_clients": 1000} for row in run.evals]
    of_the_best = {**run.config["protocol"], "selection": "validation"}
    for same in (
        run,
        replace(run, summary={**run.summary, "clients": 1000}),
        replace(many, evals=drawn),
        replace(many, summary={**many.summary, "standard_error": {}}, evals=[]),
        replace(many, config={**run.config, "evaluate_clients": 5}),
        replace(many, config={**run.config, "protocol": of_the_best}),
    ):
        assert not why_not_comparable(same)


def test_a_changed_privacy_budget_is_outside(made):
    claim = {"epsilon": 4.0, "delta": 1e-3, "noise_multiplier": 2.0}
    recorded = {**read_run(made).summary, "privacy": claim}
    assert status_of(*compare(recorded, recorded, {})) == EQUAL
    for key, value in (("epsilon", 4.001), ("delta", 2e-3), ("noise_multiplier", None)):
        again = {**recorded, "privacy": {**claim, key: value}}
        figures, details = compare(recorded, again, {})
        assert status_of(figures, details) == status_of(*compare(again, recorded, {})) == OUTSIDE
        assert f"privacy.{key}" in reason_of(OUTSIDE, figures, {}, 0.5, True)


def test_a_secret_noise_is_not_comparable_and_its_epsilon_is():
    run = next(r for r in selected("privacy.epsilon=8") if why_not_comparable(r))
    assert "secret" in why_not_comparable(run) and not wrong_budget(run)
    for key, value in (("epsilon", 2.0), ("noise_multiplier", 9.0), ("rounds", 3)):
        claim = {**run.summary["privacy"], key: value}
        changed = replace(run, summary={**run.summary, "privacy": claim})
        assert f"{key} is {value:g}," in wrong_budget(changed) or key == "rounds"
    assert verify(changed, "run", run.path).status == OUTSIDE
    assert verify(run, "run", run.path).status == NOT_COMPARABLE
