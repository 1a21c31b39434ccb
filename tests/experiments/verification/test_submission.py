"""Run folders of others: a real one is accepted, and each change by hand is found."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import yaml

from experiments.reporting import read_run
from experiments.run import main as run
from experiments.verification.attack import check_attack
from experiments.verification.budget import check_budget
from experiments.verification.checks import FAILED, OK, UNKNOWN, NotChecked
from experiments.verification.drawn import refuse_other_draws
from experiments.verification.scoring import most_apart, scored_again
from experiments.verification.submission import check_submission, write_digests
from fedpgp.errors import FedPGPError
from fedpgp.seeding import generator
from fedpgp.updates.accounting import epsilon
from strategies.checkpoint import latest_checkpoint, save_checkpoint

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


def test_clients_are_not_excused_by_an_attack_that_was_not(copy):
    path = copy / "summary.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps({**summary, "attack": {"clients": [2]}}))
    rewritten(copy / "clients.csv", lambda rows: [row for row in rows if row["id"] != "2"])
    found = failed(copy)
    assert "names as attackers 2, by its settings none" in found["attack"]
    assert "of 3 clients, clients.csv has 2" in found["clients"]


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacked") / "run"
    words = ["attack=sign_flip", "attack.scale=1000", "evaluate_every=0"]
    assert run([*SMALL, *words, f"run_dir={folder}"]) == 0
    return folder


def test_an_attacked_run_is_accepted(attacked):
    """Its figures are of the others, and clients.csv has the attackers too."""
    checks = {check.name: check for check in check_submission(attacked)}
    assert not failed(attacked) and checks["clients"].said == "2 of 2 clients were evaluated"
    assert checks["attack"].said.startswith("sign_flip by ")


def test_other_attackers_and_other_effects_are_found(attacked):
    run = read_run(attacked)
    told = run.summary["attack"]
    assert told["left_out"]["attackers"] == 2  # both rounds, by the bound on an update's norm

    def with_attack(**changed):
        return replace(run, summary={**run.summary, "attack": {**told, **changed}})

    assert check_attack(with_attack()) == check_attack(run)
    (attacker,) = told["clients"]
    for changed, said in (
        ({"clients": [(attacker + 1) % 3]}, "names as attackers"),
        ({"clients": []}, "names as attackers none"),
        ({"clients": [0, 1]}, "names as attackers 0, 1"),
        ({"name": "noise"}, "attack.name noise, config.yaml sign_flip"),
        ({"share": 0.1}, "attack.share 0.1"),
        ({"left_out": {"attackers": 0, "honest": 0}}, "attack.left_out.attackers is 0"),
        ({"success_rate": {"global": 50.0}}, "attack.success_rate.global is 50"),
    ):
        with pytest.raises(FedPGPError, match=said):
            check_attack(with_attack(**changed))


def test_the_rate_of_success_is_that_of_the_rounds(attacked):
    run, rate = read_run(attacked), {"zero_shot": None, "global": 20.0, "personal": 40.0}
    run.evals[-1]["success_rate"] = rate
    told = {**run.summary["attack"], "success_rate": rate}
    check_attack(replace(run, summary={**run.summary, "attack": told}))
    told["success_rate"] = rate | {"personal": 60.0}
    with pytest.raises(FedPGPError, match="success_rate.personal is 60.0000 .* and 40.0000 by"):
        check_attack(replace(run, summary={**run.summary, "attack": told}))


def test_a_client_that_is_said_not_to_have_answered_is_not_checked(copy):
    """Nobody else knows."""
    rewritten(copy / "clients.csv", lambda rows: [row for row in rows if row["id"] != "2"])
    path = copy / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[-1]["clients"] = 2
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    checks = {check.name: check for check in check_submission(copy)}
    assert checks["clients"].status == UNKNOWN
    assert "lacks clients of partition.json: 2. They did not answer" in checks["clients"].said


def test_a_draw_that_no_setting_asks_for_is_found(copy):
    path = copy / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    next(row for row in rows if row["kind"] == "eval")["drawn_clients"] = 2
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "evaluate_clients=null asks all 3" in failed(copy)["clients"]


def test_the_clients_that_are_drawn_are_those_of_the_seed(copy):
    run = read_run(copy)
    table = [{"id": client, "train_images": 1} for client in range(20)]
    (copy / "partition.json").write_text(json.dumps({"class_names": [], "clients": table}))

    def drawn(size, **settings):
        row = {"round": 2, "clients": 5, "all_clients": 20, "drawn_clients": size, **settings}
        config = {**run.config, "evaluate_clients": 5}
        return replace(read_run(copy), config=config, evals=[row])

    asked = set(np.argsort(generator(run.seed, "evaluate").random(20))[:5].tolist())
    refuse_other_draws(drawn(5), asked)
    before = generator(run.seed, "evaluate", 2).choice(20, size=5, replace=False)
    refuse_other_draws(drawn(5), set(before.tolist()))  # others each time, as once
    with pytest.raises(FedPGPError, match="4 clients were drawn after round 2.* draws 5"):
        refuse_other_draws(drawn(4), asked)
    with pytest.raises(FedPGPError, match="does not draw"):
        refuse_other_draws(drawn(5), set(range(20)) - asked)
    with pytest.raises(FedPGPError, match="30 clients after round 2"):
        refuse_other_draws(drawn(5, all_clients=30), asked)
    lifelong = drawn(5)
    lifelong.config["protocol"] = {"name": "lifelong"}
    with pytest.raises(NotChecked, match="not all clients are tested"):
        refuse_other_draws(lifelong, asked)


def test_an_early_end_is_one_that_the_checkpoint_knows(finished, copy):
    path = copy / "config.yaml"
    longer = yaml.safe_load(path.read_text()) | {"rounds": 9}
    path.write_text(yaml.safe_dump(longer))
    path = copy / "summary.json"
    summary = json.loads(path.read_text()) | {"rounds": 9}
    path.write_text(json.dumps(summary | {"stopped": "enough"}))
    checks = {check.name: check for check in check_submission(copy)}
    for name in ("rounds", "no test selection"):
        assert checks[name].status == UNKNOWN
        assert "after round 2 of 9: enough" in checks[name].said
    tensors, info = latest_checkpoint(finished / "checkpoint", print)
    for known, status in (("", FAILED), ("enough", OK)):
        save_checkpoint(copy / "checkpoint", 2, tensors, {**info, "stopped": known})
        checks = {check.name: check for check in check_submission(copy)}
        assert checks["rounds"].status == checks["no test selection"].status == status
        assert "enough" in checks["rounds"].said


def test_what_is_not_on_this_machine_is_not_checked(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("private"))
    with pytest.raises(NotChecked, match="private state of client 0"):
        scored_again(read_run(tmp_path / "run"), 0.5)
    shutil.copytree(finished / "private", tmp_path / "run" / "private")
    path = tmp_path / "run" / "config.yaml"
    config = yaml.safe_load(path.read_text()) | {"device": "cuda"}
    path.write_text(yaml.safe_dump(config))
    assert "have these figures" in scored_again(read_run(tmp_path / "run"), 0.5)
    config["dataset"] = {"name": "folder", "root": "/nobody/has/this", "download": False}
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(NotChecked, match="cannot be scored here: data set folder"):
        scored_again(read_run(tmp_path / "run"), 0.5)


def test_a_checkpoint_that_its_run_cannot_have_is_found(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    tensors, info = latest_checkpoint(finished / "checkpoint", print)
    tensors["shared/p_G"] = tensors["shared/p_G"][:-1]
    save_checkpoint(tmp_path / "run" / "checkpoint", info["round"], tensors, info)
    assert "p_G of the shape" in failed(tmp_path / "run")["scored again"]


@pytest.mark.parametrize("name", ["ece", "f1_macro", "worst10", "domains", "unseen"])
def test_each_figure_of_the_last_evaluation_is_compared(finished, name):
    scored = read_run(finished).evals[-1]
    recorded = read_run(finished).evals[-1]
    block = recorded["personal"]
    assert most_apart(recorded, scored, 0.5) == 0
    values = {"domains": {"noto": 1.0}, "unseen": 50.0}
    for value in (values.get(name, 1.0), None if block[name] is not None else 50.0):
        block[name] = value
        with pytest.raises(FedPGPError, match=f"personal.{name}"):
            most_apart(recorded, scored, 0.5)
    del block[name]  # as of a version that did not have it
    assert most_apart(recorded, scored, 0.5) == 0


def test_a_privacy_budget_is_that_of_its_settings(copy):
    run = read_run(copy)
    assert check_budget(run) == "none is claimed"
    about = {"clip": 1.0, "noise": 3.0, "epsilon": None, "delta": 0.01, "max_epsilon": None}
    privacy = {"name": "client", **about, "accountant": "rdp", "seeded_noise": False}
    claim = {
        "epsilon": epsilon(3.0, 1.0, 2, 0.01),
        "delta": 0.01,
        "noise_multiplier": 3.0,
        "rounds": 2,
    }

    def private(**changed):
        summary = {**run.summary, "privacy": {**claim, **changed}}
        return replace(run, config={**run.config, "privacy": privacy}, summary=summary)

    assert "accountant" in check_budget(private())
    for key, value in (("epsilon", 0.5), ("delta", 1e-6), ("noise_multiplier", 9.0), ("rounds", 1)):
        with pytest.raises(FedPGPError, match=key if key != "rounds" else "1 rounds"):
            check_budget(private(**{key: value}))
    with pytest.raises(FedPGPError, match="privacy=none"):
        check_budget(replace(run, summary=private().summary))
    image = replace(private(), config={**run.config, "privacy": {"name": "image"}})
    with pytest.raises(NotChecked, match="only that of privacy=client"):
        check_budget(image)
