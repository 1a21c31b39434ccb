"""The command that scores a finished run: on its own data the run's own numbers, and
figures on other data."""

import json

import pytest

from experiments.evaluate import evaluate, main
from experiments.run import main as run

SMALL = [
    "runtime=inline",
    "device=cpu",
    "clients=3",
    "rounds=2",
    "local_epochs=1",
    "partition=iid",
    "shots=4",
]
SMALL += ["dataset.domains=[noto]", "dataset.groups=[food]"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A real run of the small model on a part of the embedded federation."""
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    assert run([*SMALL, f"run_dir={folder}"]) == 0
    return folder


def test_its_own_data_give_its_own_numbers(finished, capsys):
    assert main(["--run", str(finished)]) == 0
    path = finished / "evaluations" / "own.json"
    assert f"wrote {path}" in capsys.readouterr().out
    record, summary = (json.loads(p.read_text()) for p in (path, finished / "summary.json"))
    assert (
        record["accuracy"] == summary["accuracy"]
        and record["round"] == 2
        and len(record["clients"]) == 3
    )


def test_another_option_of_its_protocol(finished, tmp_path):
    assert (
        main(
            [
                "--run",
                str(finished),
                "--to",
                str(tmp_path / "own.json"),
                "protocol.local_labels=own",
            ]
        )
        == 0
    )
    own = json.loads((tmp_path / "own.json").read_text())["accuracy"]["personal"]
    plain = json.loads((finished / "summary.json").read_text())["accuracy"]["personal"]
    assert own["local"] >= plain["local"] and own["base"] == plain["base"]


def test_other_data_with_their_own_classes(finished):
    before = (finished / "summary.json").read_bytes()
    accuracy = evaluate(finished, ["dataset.groups=[animals]", "dataset.domains=[twemoji]"])[
        "accuracy"
    ]
    for model in ("zero_shot", "global", "personal"):
        block = accuracy[model]
        assert (
            set(block["datasets"]) == {"emoji twemoji animals"}
            and block["local"] is block["base"] is None
        )
        assert block["unseen"] == block["datasets"]["emoji twemoji animals"] > 100 / 6
    assert (finished / "summary.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lr=0.1"], "lr has no meaning for a run that is trained"),
        (["protocol.class_order=alphabet"], "other images or classes to train on"),
        (["protocol.bas=all"], "did you mean protocol.base"),
        (["dataset=emojis"], "did you mean emoji"),
        (["dataset=emoji,dtd"], "has several values: a sweep is started with experiments.run -m"),
        (["dataset=folder"], "dataset.root has no value"),
    ],
)
def test_what_cannot_work_is_refused_by_name(finished, arguments, said, capsys):
    assert main(["--run", str(finished), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_without_a_run(tmp_path, capsys):
    assert main(["--run", str(tmp_path)]) == 2
    assert "is no run's folder" in capsys.readouterr().err
