"""A finished run is given more rounds, to the numbers of a run that had them from the start; and
prompts of a run start another."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import yaml

from experiments.finished_run import (
    check_more_rounds,
    from_its_prompts,
    prompts_of,
    say_finished,
)
from experiments.run import main
from experiments.run_folder import RunFolder
from experiments.runner import resume, start
from fedpgp.build import configured_method
from fedpgp.config import MethodSection
from fedpgp.errors import FedPGPError
from fedpgp.methods.fedex_lora import FedExLoRA
from strategies.checkpoint import checkpoints, read_checkpoint, save_checkpoint
from tests.experiments.test_resume import results
from tests.experiments.test_run import SMALL
from tests.helpers.small import small_config, small_federation


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    start(small_config(folder, "rounds=4"), federation_of=small_federation)
    return folder


@pytest.fixture
def run(tmp_path):
    start(small_config(tmp_path / "run", "rounds=2"), federation_of=small_federation)
    return tmp_path / "run"


def tensors_of(run):
    return read_checkpoint(checkpoints(run / "checkpoint")[-1])[0]


def test_a_finished_run_goes_on_to_more_rounds(run, whole):
    before = json.loads((run / "summary.json").read_text())
    resume(run, {"rounds": 4}, federation_of=small_federation)
    assert results(run) == results(whole)
    _, config = RunFolder.open(run)
    assert config["rounds"] == 4 and yaml.safe_load((run / "config.yaml").read_text())[
        "extended"
    ] == [2]
    after = json.loads((run / "summary.json").read_text())
    assert after["rounds"] == 4 and after["seconds"]["train"] > before["seconds"]["train"]


def test_killed_on_the_way_to_more_rounds(run, whole, monkeypatch):
    """Then it is not finished, and resumes to the new number without being told again."""
    from strategies.server import Server

    one_round, rounds = Server._round, []

    def killed(self, server_round):
        rounds.append(server_round)
        if server_round == 4:
            raise MemoryError("killed")
        one_round(self, server_round)

    monkeypatch.setattr(Server, "_round", killed)
    with pytest.raises(MemoryError):
        resume(run, {"rounds": 4}, federation_of=small_federation)
    monkeypatch.undo()
    assert rounds == [3, 4] and RunFolder(run).summary()["status"] == "interrupted"
    resume(run, federation_of=small_federation)
    assert results(run) == results(whole)
    assert yaml.safe_load((run / "config.yaml").read_text())["extended"] == [2]


@pytest.mark.parametrize(
    ("overrides", "asked", "said"),
    [
        ([], 1, "rounds=1: this run was started with 2; a resumed run can only have more"),
        (
            ["training.schedule=cosine"],
            4,
            "training.schedule=cosine lets the rate fall over all rounds",
        ),
        (["method=promptsrc"], 4, "method=promptsrc weights each round by its place among all"),
    ],
)
def test_rounds_that_cannot_be_added(tmp_path, overrides, asked, said):
    start(small_config(tmp_path / "run", "rounds=2", *overrides), federation_of=small_federation)
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    if asked < 2:
        (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(FedPGPError, match=said):
        resume(tmp_path / "run", {"rounds": asked}, federation_of=small_federation)
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


def test_the_command_gives_more_rounds_and_nothing_else(tmp_path, small, capsys):
    folder = tmp_path / "run"
    assert main([*SMALL, f"run_dir={folder}"]) == 0
    assert main([f"resume={folder}"]) == 0
    assert f"finished already: {folder} (1 round)" in capsys.readouterr().out
    assert main([f"resume={folder}", "rounds=2", "lr=0.5"]) == 2
    said = capsys.readouterr().err
    assert (
        "other there: lr. Leave it out, or start a new run" in said
        and f"init_from={folder}" in said
    )
    assert main([f"resume={folder}", "rounds=0"]) == 2
    assert main([f"resume={folder}", "rounds=abc"]) == 2
    assert main([f"resume={folder}", "rounds=2"]) == 0
    assert json.loads((folder / "summary.json").read_text())["rounds"] == 2
    assert main([*SMALL, "rounds=3", f"init_from={folder}", f"run_dir={tmp_path / 'next'}"]) == 0


def test_all_parts_of_a_protocol_are_given_more_rounds(tmp_path, small, capsys):
    folder = tmp_path / "run"
    command = [
        *SMALL,
        "protocol=leave_one_domain_out",
        "partition=domain",
        "dataset.domains=[noto,twemoji]",
    ]
    assert main([*command, f"run_dir={folder}"]) == 0
    before = (folder / "summary.json").stat().st_mtime_ns
    assert main([f"resume={folder}"]) == 0
    assert "finished already" in capsys.readouterr().out
    assert (folder / "summary.json").stat().st_mtime_ns == before
    assert main([f"resume={folder}", "rounds=2"]) == 0
    for path in (folder, *folder.glob("held_out=*")):
        assert json.loads((path / "summary.json").read_text())["rounds"] == 2
    parts = yaml.safe_load((folder / "parts.yaml").read_text())
    assert (
        parts["rounds"] == 2 and parts["extended"] == [1] and parts["parts"] == ["noto", "twemoji"]
    )
    (folder / "parts.yaml").write_text(
        (folder / "parts.yaml").read_text().replace("- twemoji\n- ", "- ")
    )
    parts["parts"] = ["noto"]
    (folder / "parts.yaml").write_text(yaml.safe_dump(parts))
    assert main([f"resume={folder}", "rounds=3"]) == 2
    assert "its parts were noto, now they would be noto, twemoji" in capsys.readouterr().err


def test_a_new_run_starts_from_the_prompts_of_another(run, tmp_path):
    """With other clients, data (another partition) and rounds; only the shared tensors come
    along."""
    start(
        small_config(tmp_path / "next", "rounds=0", "clients=3", "seed=5", f"init_from={run}"),
        federation_of=small_federation,
    )
    ours, theirs = tensors_of(tmp_path / "next"), tensors_of(run)
    np.testing.assert_array_equal(ours["shared/p_G"], theirs["shared/p_G"])
    assert ours["committed"].tolist() == [0, 0, 0] and theirs["committed"].any()
    start(
        small_config(tmp_path / "else", "rounds=0", "clients=3", "seed=5"),
        federation_of=small_federation,
    )
    assert np.abs(tensors_of(tmp_path / "else")["shared/p_G"] - theirs["shared/p_G"]).max() > 1e-6


def test_it_is_resumed_without_the_other_run(run, tmp_path):
    """What it started from is in its own checkpoints."""
    words = ["rounds=2", f"init_from={run}"]
    start(small_config(tmp_path / "whole", *words), federation_of=small_federation)
    start(
        small_config(tmp_path / "next", "rounds=1", f"init_from={run}"),
        federation_of=small_federation,
    )
    run.rename(tmp_path / "gone")
    resume(tmp_path / "next", {"rounds": 2}, federation_of=small_federation)
    assert results(tmp_path / "next") == results(tmp_path / "whole")


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A run of a method with other shared tensors."""
    folder = tmp_path_factory.mktemp("deep") / "run"
    start(small_config(folder, "rounds=0", "method=promptsrc"), federation_of=small_federation)
    return folder


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["method=vpt", "method.tokens=2"],
            r"v has the shape \(2, 4, 64\) there and \(2, 2, 64\) here; n_ctx, model",
        ),
        (
            ["method=promptfl"],
            r"method=promptfl starts from p_G, and that run \(method=promptsrc\) has t, v",
        ),
        (["method=coop"], "method=coop has no global prompt that could start from another"),
    ],
)
def test_prompts_that_do_not_fit_are_refused_in_words(deep, tmp_path, overrides, said):
    with pytest.raises(FedPGPError, match=f"init_from={deep}: {said}"):
        start(
            small_config(tmp_path / "next", *overrides, f"init_from={deep}"),
            federation_of=small_federation,
        )
    assert not (tmp_path / "next").exists()


def test_what_is_no_run_starts_none(tmp_path):
    with pytest.raises(FedPGPError, match=f"{tmp_path} is no run's folder"):
        start(
            small_config(tmp_path / "next", f"init_from={tmp_path}"), federation_of=small_federation
        )


def test_what_has_no_place_and_other_weights_are_told(deep, tmp_path):
    said = []
    config = {**small_config(tmp_path / "next", "method=vpt"), "run_dir": ""}
    assert set(prompts_of(deep, small_federation(json.dumps(config)), said.append)) == {"v"}
    assert said == [f"init_from={deep}: method=vpt has no place for t; taken: v"]
    (path,) = checkpoints(deep / "checkpoint")
    tensors, info = read_checkpoint(path)
    save_checkpoint(
        tmp_path / "other" / "checkpoint", info.pop("round"), tensors, {**info, "model_sha256": "0"}
    )
    (tmp_path / "other" / "config.yaml").write_bytes((deep / "config.yaml").read_bytes())
    prompts_of(tmp_path / "other", small_federation(json.dumps(config)), said.append)
    assert "trained with other weights of the model" in said[-1]


class OwnExact(FedExLoRA):
    """A method of one's own: the server of FedEx-LoRA."""


def as_own(config):
    """The configuration of a method, with the class of one's own in its place."""
    _, settings = configured_method(MethodSection.of(config["method"]))
    own = {"component": f"{__name__}.{OwnExact.__name__}", "settings": asdict(settings)}
    return {**config, "method": {"name": "component", **own}}


def test_a_run_whose_model_is_partly_the_servers_starts_none(tmp_path):
    folder = tmp_path / "run"
    start(small_config(folder, "rounds=0", "method=fedex_lora"), federation_of=small_federation)
    started = yaml.safe_load((folder / "config.yaml").read_text())
    for theirs in (started, as_own(started)):
        (folder / "config.yaml").write_text(yaml.safe_dump(theirs))
        for method in ("fedex_lora", "fedit"):
            config = {**small_config(tmp_path / "next", f"method={method}"), "run_dir": ""}
            with pytest.raises(FedPGPError, match=f"init_from={folder}: .* residuals R, which a"):
                prompts_of(folder, small_federation(json.dumps(config)), print)
    own = as_own(started)
    own["method"]["component"] = "nobody.has.This"
    (folder / "config.yaml").write_text(yaml.safe_dump(own))
    with pytest.raises(FedPGPError, match=f"init_from={folder}: .*nobody.has.This: No module"):
        prompts_of(folder, small_federation(json.dumps(config)), print)


def test_what_no_client_begins_at_starts_no_run(tmp_path):
    for theirs, ours in (("fedalt", "fedit"), ("fedit", "fedalt"), ("fedalt", "fedalt")):
        folder = tmp_path / f"{theirs} {ours}"
        chosen = small_config(folder, "rounds=0", f"method={theirs}")
        start(chosen, federation_of=small_federation)
        config = {**small_config(tmp_path / "next", f"method={ours}"), "run_dir": ""}
        with pytest.raises(FedPGPError, match=f"init_from={folder}: method=fedalt .*their own"):
            prompts_of(folder, small_federation(json.dumps(config)), print)


@pytest.mark.parametrize(
    ("method", "starts"),
    [
        ("promptfl", True),
        ("coop", False),
        ("fedex_lora", False),
        ("fedalt", False),
        ("component", False),
    ],
)
def test_what_is_said_of_a_run_suggests_no_start_that_is_refused(tmp_path, method, starts):
    own = method == "component"
    config = small_config(tmp_path / "run", f"method={'fedex_lora' if own else method}")
    config = as_own(config) if own else config
    said = say_finished(tmp_path / "run", 3, "python -m experiments.run", config)
    assert ("init_from" in said) == bool(from_its_prompts(config)) == starts
    assert f"more rounds: python -m experiments.run resume={tmp_path / 'run'} rounds=6" in said
    cosine = {**config, "training": {**config["training"], "schedule": "cosine"}}
    with pytest.raises(FedPGPError) as refused:
        check_more_rounds(cosine, 1, 2)
    assert ("init_from" in str(refused.value)) == starts


def test_a_method_that_is_not_here_suggests_nothing(tmp_path):
    config = small_config(tmp_path / "run")
    config["method"] = {"name": "component", "component": "nobody.has.This"}
    assert from_its_prompts(config) == ""
