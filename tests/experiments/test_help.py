"""--help by group and choice, settings written as flags, and the nearest name first."""

import re

import pytest

from experiments.help import explain, explain_top, settings_as_flags, unknown_words
from experiments.run import main
from experiments.settings import CONF, choices
from fedpgp.errors import FedPGPError, unknown
from fedpgp.methods import METHODS


def test_a_choice_is_explained_key_by_key(capsys):
    assert main(["--help", "method=fedotp"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("method=fedotp: FedOTP (CVPR 2024)")
    assert "method.epsilon: 0.1 of the entropy" in said and "method.optimizer_state: reset" in said


def test_a_group_lists_its_choices_with_a_sentence(capsys):
    assert main(["--help", "strategy"]) == 0
    said = capsys.readouterr().out
    for name in choices()["strategy"]:
        assert re.search(rf"^  {name} +\S", said, re.MULTILINE), name


def test_every_choice_has_a_sentence_and_every_key_is_shown():
    """Of all groups that a person chooses from; keys are those of the files."""
    for group, names in choices().items():
        for name in names:
            if "/" in group or group in ("recipe", "experiment"):
                continue
            title, *rows = explain([f"{group}={name}"]).splitlines()
            assert re.match(rf"{group}={name}: \w", title), title
            text = (CONF / group / f"{name}.yaml").read_text()
            keys = re.findall(r"^([a-z_]\w*):", text, re.MULTILINE)
            shown = "\n".join(rows)
            for key in set(keys) - {"name", "scheme", "defaults", group, "dataset"}:
                assert f"{group}.{key}" in shown, (group, name, key)


def test_a_comment_that_continues_below_is_shown_whole():
    said = " ".join(explain(["method=fedpgp"]).split())
    assert "method.guidance: photo z_C: photo (the data set's template), plain" in said
    assert 'or context ("X X ... X class.") method.personal_init' in said


def test_a_key_is_explained_by_its_name(capsys):
    assert main(["--help", "lr"]) == 0
    assert " ".join(capsys.readouterr().out.split()) == "lr: 0.03 learning rate at its highest"
    for word in ("method.rank", "rank"):
        said = " ".join(explain([word]).split())
        assert "method.rank: 2 of the private term, at most n_ctx (method=fedpgp)" in said
    with pytest.raises(FedPGPError, match="'method.rnk'; did you mean method.rank"):
        explain(["method.rnk"])
    with pytest.raises(FedPGPError, match="unknown group .*choose one of"):
        explain(["zzzzzz"])


def test_general_help_has_every_key_of_the_run(capsys):
    said = explain_top()
    for words in ("seed: 0", "rounds: 10", "training.momentum: 0.9", "lr: 0.03"):
        assert words in said
    assert "hydra" not in said


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--rounds", "5"], "rounds=5"),
        (["--local-epochs=3"], "local_epochs=3"),
        (["-m", "seed=1,2", "--method", "fedotp"], "method=fedotp"),
        (["--beta", "0.3"], "partition.beta=0.3"),
        (["--method.rank=4"], "method.rank=4"),
        (["--resume"], "resume=VALUE"),
    ],
)
def test_a_setting_written_as_a_flag_is_told_how_it_is_written(capsys, arguments, wanted):
    assert main(arguments) == 2
    assert capsys.readouterr().err.strip().endswith(f"write {wanted}")


def test_flags_of_hydra_are_left_alone():
    for arguments in (
        ["--cfg", "job"],
        ["--help"],
        ["-m", "rounds=1"],
        ["--info", "config"],
        ["--multirun"],
    ):
        assert settings_as_flags(arguments) is None


def test_a_wrong_group_or_choice_is_named_with_the_nearest():
    with pytest.raises(FedPGPError, match="did you mean method"):
        explain(["methd"])
    with pytest.raises(FedPGPError, match="did you mean fedotp"):
        explain(["method=fedopt"])


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("fedpgb", "fedpgp"), ("fedpg", "fedpgp"), ("promtfl", "promptfl"), ("FedOPT", "fedotp")],
)
def test_the_nearest_name_stands_first(typed, meant):
    assert f"did you mean {meant}" in unknown("method", typed, list(METHODS))


def test_an_option_that_is_a_setting_elsewhere_is_not_blamed_for_another():
    assert (
        unknown_words(["--foo"], ["local", "--clients", "5", "--foo"])
        == "unrecognized arguments: --foo"
    )
    said = unknown_words(["--rounds"], ["local", "--clients", "5", "--rounds", "3"])
    assert said == "--rounds: settings are written without dashes; write rounds=3"
