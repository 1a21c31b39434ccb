"""Run folders of others: a real one is accepted, and each change by hand is found."""

import csv
import json
import shutil

import pytest
import yaml

from experiments.run import main as run
from experiments.verification.submission import (
    FAILED,
    OK,
    UNKNOWN,
    check_submission,
    write_digests,
)

SMALL = [
    *("runtime=inline", "device=cpu", "clients=3", "rounds=2", "local_epochs=1"),
    *("partition=iid", "shots=4", "dataset.domains=[noto]", "dataset.groups=[food]"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A real run of the small model on a part of the embedded federation."""
    folder = tmp_path_factory.mktemp("submission") / "run"
    assert run([*SMALL, f"run_dir={folder}"]) == 0
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    """The same without its tensors, so that no client is scored again."""
    ignored = shutil.ignore_patterns("checkpoint", "private")
    shutil.copytree(finished, tmp_path / "copy", ignore=ignored)
    return tmp_path / "copy"


def failed(folder):
    """The checks that fail: name -> why."""
    return {c.name: c.said for c in check_submission(folder) if c.status == FAILED}


def rewritten(path, change):
    """The rows of clients.csv after a change by hand."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows = change(rows) or rows
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_a_real_run_is_accepted_and_its_clients_are_scored_again(finished):
    checks = {check.name: check for check in check_submission(finished)}
    assert {check.status for check in checks.values()} == {OK, UNKNOWN}
    assert [name for name, check in checks.items() if check.status == UNKNOWN] == ["digests"]
    assert checks["scored again"].said == "the clients' models have these figures"


def test_without_its_tensors_it_is_accepted_too(copy):
    checks = {check.name: check.status for check in check_submission(copy)}
    assert not failed(copy)
    assert checks["checkpoint"] == checks["scored again"] == UNKNOWN


def test_a_changed_figure_is_found(copy):
    path = copy / "summary.json"
    summary = json.loads(path.read_text())
    summary["accuracy"]["personal"]["local"] += 0.01
    path.write_text(json.dumps(summary))
    assert list(failed(copy)) == ["figures of the rounds"]
    assert "accuracy.personal.local" in failed(copy)["figures of the rounds"]


def test_a_figure_changed_in_all_places_but_the_clients_is_found(copy):
    path = copy / "summary.json"
    summary = json.loads(path.read_text())
    recorded = summary["accuracy"]["personal"]["local"]
    for file in (path, copy / "metrics.jsonl"):
        file.write_text(file.read_text().replace(repr(recorded), repr(recorded + 1)))
    assert "figures of the clients" in failed(copy)


def test_a_changed_client_is_found(copy):
    def change(rows):
        rows[0]["local"] = "99.5"

    rewritten(copy / "clients.csv", change)
    assert "figures of the clients" in failed(copy)


def test_a_removed_client_is_found(copy):
    rewritten(copy / "clients.csv", lambda rows: [row for row in rows if row["id"] != "2"])
    found = failed(copy)
    assert "clients.csv has 2" in found["clients"] and "figures of the clients" in found


def test_a_client_removed_from_the_partition_too_is_found(copy):
    rewritten(copy / "clients.csv", lambda rows: [row for row in rows if row["id"] != "2"])
    path = copy / "partition.json"
    partition = json.loads(path.read_text())
    partition["clients"] = partition["clients"][:2]
    path.write_text(json.dumps(partition))
    assert "3 clients, partition.json 2" in failed(copy)["clients"]


def test_a_changed_setting_is_found_by_the_checkpoint_and_by_the_command(finished, copy):
    path = copy / "config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "lr": 7.0}))
    assert "lr is 7.0" in failed(copy)["command"]
    shutil.copytree(finished / "checkpoint", copy / "checkpoint")
    shutil.copytree(finished / "private", copy / "private")
    assert "lr is 7.0" in failed(copy)["checkpoint"]


def test_a_round_chosen_by_its_test_figures_is_found(copy):
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    before = [json.loads(line) for line in lines]
    path = copy / "summary.json"
    summary = json.loads(path.read_text())
    first = next(row for row in before if row["kind"] == "eval" and row["round"] == 1)
    chosen = {model: first[model] for model in summary["accuracy"]}
    path.write_text(json.dumps({**summary, "accuracy": chosen, "selected_rounds": [1]}))
    assert {"no test selection", "figures of the rounds"} <= set(failed(copy))
    kept = [line for line, row in zip(lines, before, strict=True) if row["round"] < 2]
    (copy / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    assert "rounds" in failed(copy)


def test_digests_tell_which_file_was_changed(copy):
    write_digests(copy)
    assert not failed(copy)
    with (copy / "samples.json").open("a") as file:
        file.write("\n")
    assert failed(copy) == {"digests": "changed or missing: samples.json"}


def test_a_missing_or_damaged_file_is_named(copy):
    (copy / "clients.csv").write_text("id,model\n0,nobody\n")
    assert "clients.csv" in failed(copy)["complete"]
    (copy / "clients.csv").unlink()
    assert "clients.csv" in failed(copy)["complete"]
