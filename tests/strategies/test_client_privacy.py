"""``privacy=client`` from end to end: what goes with it, the account of a run that is killed, the
budget."""

import json

import pytest

from experiments.runner import resume, start
from experiments.settings import choices
from fedpgp.attacks import ATTACKS
from fedpgp.errors import FedPGPError
from fedpgp.updates.client_privacy import ALONE, LINEAR, SEEDED_NOISE
from strategies import run_state
from strategies.server import Server
from strategies.spent_record import RECORD
from tests.helpers.small import small_config, small_federation

PRIVATE = ("privacy=client", "privacy.clip=0.1", "participation=0.5")
SHORT = (*PRIVATE, "rounds=2", "evaluate_every=0")
SHARE_NOTHING = {"coop", "zero_shot"}
READ_EACH = {"scaffold", "fedamp", "pfedmoap", "pfedhn", "hyperfield"}
READ_EACH |= {"fedalt", "fedex_lora", "flexlora", "hetlora", "hilora", "pilora"}


def run(folder, *overrides: str, **faults) -> dict:
    config = small_config(folder, *overrides, **faults)
    return start(config, federation_of=small_federation)


def trained(folder) -> list[dict]:
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize("strategy", choices()["strategy"])
def test_each_strategy_acts_behind_the_noise_or_is_refused(strategy, tmp_path):
    overrides = (*SHORT, "method=promptfl", f"strategy={strategy}")
    if strategy in LINEAR:
        assert run(tmp_path / "run", *overrides)["privacy"]["rounds"] == 2
    else:
        with pytest.raises(FedPGPError, match=f"does not go with strategy={strategy}"):
            run(tmp_path / "run", *overrides)


@pytest.mark.parametrize("method", sorted(set(choices()["method"]) - {"component"}))
def test_each_method_trains_or_is_refused(method, tmp_path):
    overrides = (*SHORT, f"method={method}")
    if method in SHARE_NOTHING | READ_EACH:
        with pytest.raises(FedPGPError, match=f"does not go with method={method}"):
            run(tmp_path / "run", *overrides)
    else:
        assert run(tmp_path / "run", *overrides)["privacy"]["rounds"] == 2


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["first_round=all"], "first_round=all"),
        (["runtime.min_clients=2"], "runtime.min_clients"),
        (["method=dp_fpl", "method.epsilon=1"], "another update step"),
        *(([f"attack={a}"], f"attack={a}") for a in sorted(set(ATTACKS) - set(ALONE))),
    ],
)
def test_what_is_not_in_the_account_is_refused(overrides, why, tmp_path):
    with pytest.raises(FedPGPError, match=f"does not go with {why}"):
        run(tmp_path / "run", *SHORT, *overrides)


@pytest.mark.parametrize("attack", ALONE)
def test_attackers_that_use_their_own_data_alone_are_clipped_too(attack, tmp_path):
    assert not ATTACKS[attack].colludes
    overrides = (*SHORT, "method=promptfl", f"attack={attack}")
    assert run(tmp_path / "run", *overrides)["privacy"]["rounds"] == 2


def test_a_round_is_one_line_and_noise_of_the_seed_one_warning(tmp_path, capsys):
    run(tmp_path / "run", *PRIVATE, "method=promptfl", "rounds=2", "privacy.seeded_noise=true")
    lines = capsys.readouterr().out.splitlines()
    assert [sum(line.startswith(f"round {k}/2") for line in lines) for k in range(3)] == [1, 1, 1]
    assert sum(SEEDED_NOISE in " ".join(line.split()) for line in lines) == 1


def test_a_round_with_nobody_is_noise_and_counts(tmp_path):
    summary = run(tmp_path / "run", *SHORT, "participation=0.000001", "strategy=fedadam")
    assert summary["privacy"]["rounds"] == 2
    assert [(line["clients"], line["loss"]) for line in trained(tmp_path / "run")] == [
        (0, None)
    ] * 2


@pytest.mark.parametrize(("killed_in", "adaptive"), [(1, True), (2, True), (3, False)])
def test_a_run_killed_in_an_evaluation_spends_a_round_once(
    killed_in, adaptive, tmp_path, monkeypatch
):
    overrides = (*PRIVATE, "method=promptfl", "rounds=3", "privacy.seeded_noise=true")
    overrides += (f"privacy.adaptive_clip={str(adaptive).lower()}",)
    whole = run(tmp_path / "whole", *overrides)
    evaluate = Server._evaluate

    def killed(server, server_round):
        if server_round == killed_in:
            raise KeyboardInterrupt
        evaluate(server, server_round)

    monkeypatch.setattr(Server, "_evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", *overrides)
    monkeypatch.undo()
    again = resume(tmp_path / "killed", federation_of=small_federation)
    assert again["privacy"] == whole["privacy"] and again["accuracy"] == whole["accuracy"]
    assert len(trained(tmp_path / "killed")) == 3
    assert (again["privacy"]["clip"] != 0.1) == adaptive
    said = [[line["updates"] for line in trained(tmp_path / of)] for of in ("whole", "killed")]
    assert said[0] == said[1]


def test_the_budget_ends_the_training_and_the_last_model_is_evaluated(tmp_path):
    summary = run(tmp_path / "run", *PRIVATE, "method=promptfl", "privacy.max_epsilon=1.9")
    assert summary["status"] == "finished" and "privacy.max_epsilon" in summary["stopped"]
    assert summary["privacy"]["rounds"] == 1 and summary["privacy"]["epsilon"] <= 1.9
    assert summary["accuracy"]["global"]["local"] is not None


def test_no_more_rounds_for_noise_that_was_made_for_fewer(tmp_path):
    run(tmp_path / "run", *SHORT, "method=promptfl", "privacy.epsilon=4")
    with pytest.raises(FedPGPError, match="privacy.epsilon is of all rounds together"):
        resume(tmp_path / "run", {"rounds": 4}, federation_of=small_federation)


def test_a_damaged_last_checkpoint_is_not_passed_over(tmp_path):
    run(tmp_path / "run", *SHORT, "method=promptfl")
    newest = tmp_path / "run" / "checkpoint" / "round_00002.safetensors"
    newest.write_bytes(b"nothing")
    with pytest.raises(FedPGPError, match="noise would be drawn twice"):
        resume(tmp_path / "run", {"rounds": 3}, federation_of=small_federation)


def test_no_checkpoint_has_a_sum_that_is_not_counted(tmp_path, monkeypatch):
    """A server that dies between the two writes has counted one too many, not one too few."""
    save, counts = run_state.save_checkpoint, []

    def killed(folder, server_round, *about):
        counts.append(json.loads((folder / RECORD).read_text())["client"])
        if server_round == 2:
            raise KeyboardInterrupt
        return save(folder, server_round, *about)

    monkeypatch.setattr(run_state, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", *SHORT, "method=promptfl")
    assert counts == [0, 1, 2]
    monkeypatch.undo()
    summary = resume(tmp_path / "run", federation_of=small_federation)
    assert summary["rounds"] == 2 and summary["privacy"]["rounds"] == 3


@pytest.mark.parametrize("settings", [(), ("privacy.epsilon=8",)])
def test_a_round_whose_checkpoint_is_gone_counts_all_the_same(
    settings, tmp_path, monkeypatch, capsys
):
    """Its noise was drawn, and is drawn once more: two sums, and both are accounted."""
    whole = Server._round

    def killed(server, server_round):
        if server_round == 3:
            raise KeyboardInterrupt
        whole(server, server_round)

    monkeypatch.setattr(Server, "_round", killed)
    overrides = (*PRIVATE, "rounds=3", "evaluate_every=0", "method=promptfl", *settings)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", *overrides)
    monkeypatch.undo()
    (tmp_path / "run" / "checkpoint" / "round_00002.safetensors").unlink()
    summary = resume(tmp_path / "run", federation_of=small_federation)
    assert "noise was drawn for 1 round(s) that no checkpoint has" in capsys.readouterr().out
    if settings:  # made for three sums
        assert "above privacy.epsilon=8" in summary["stopped"]
        assert summary["privacy"]["rounds"] == 3 and summary["privacy"]["epsilon"] <= 8
    else:
        assert summary["privacy"]["rounds"] == 4 and summary["rounds"] == 3
