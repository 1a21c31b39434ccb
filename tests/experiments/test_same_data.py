"""A run knows its data: it is not resumed nor scored on others, and a client's
classifier needs none of them."""

import contextlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import clients.client_app
from experiments import evaluate, export, predict
from experiments.run import changes_on_resume
from experiments.run_folder import RunFolder
from experiments.runner import resume, start
from experiments.settings import composed
from fedpgp.build import build_federation
from fedpgp.data import load_dataset
from fedpgp.data_record import data_changes, data_record
from fedpgp.errors import FedPGPError
from strategies.checkpoint import checkpoints, read_checkpoint, save_checkpoint

CLASSES = ("cat", "dog", "fox")
NEW = "ant"
"""A class that comes first in the order of names, so that all labels move."""


def image(path, shade):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(shade).integers(256, size=(16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Images, and a run on them that was killed after its last checkpoint, before its summary."""
    folder = tmp_path_factory.mktemp("made")
    for number, name in enumerate(CLASSES):
        for split, count in (("train", 4), ("test", 2)):
            for i in range(count):
                image(folder / "images" / split / name / f"{i}.png", 10 * number + i)
    words = [
        "dataset=folder",
        "dataset.root=images",
        "partition=iid",
        "protocol=personal",
        "clients=2",
    ]
    words += [
        "runtime=inline",
        "rounds=1",
        "local_epochs=1",
        f"runtime.cache_dir={folder / 'cache'}",
        "run_dir=run",
    ]
    with contextlib.chdir(folder):
        start(composed(words))
    (folder / "run" / "summary.json").unlink()
    return folder


@pytest.fixture
def run(made, tmp_path, monkeypatch):
    for name in ("run", "images"):
        shutil.copytree(made / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)  # the configuration's paths are relative
    monkeypatch.setattr(
        clients.client_app, "_federation", None
    )  # what a process that is started anew has
    return tmp_path / "run"


@pytest.fixture
def images(run):
    return run.parent / "images"


def add_class(images):
    for split in ("train", "test"):
        for i in range(4):
            image(images / split / NEW / f"{i}.png", 90 + i)


def take_one(images):
    (images / "test" / "dog" / "1.png").unlink()


def other_image(images):
    path = images / "train" / "cat" / "0.png"
    path.write_bytes(path.read_bytes() + b"\0")


def swap(images):
    """The same class folders and numbers of images, under other labels."""
    for split in ("train", "test"):
        (images / split / "cat").rename(images / split / "elk")


CHANGES = [
    (add_class, "classes that are new: ant; 16 train images where there were 12; 10 test images"),
    (take_one, "5 test images where there were 6"),
    (other_image, "train images of other names, sizes or labels"),
    (swap, "classes that are new: elk; classes that are gone: cat"),
]


@pytest.mark.parametrize(
    ("change", "said"), CHANGES, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_run_whose_data_have_changed_is_neither_resumed_nor_scored(
    run, images, change, said, capsys
):
    before = (run / "metrics.jsonl").read_bytes()
    change(images)
    with pytest.raises(
        FedPGPError,
        match=f"the data of {run} have changed since it was started: {said}.*Restore them",
    ):
        resume(run)
    assert (run / "metrics.jsonl").read_bytes() == before and checkpoints(run / "checkpoint")
    assert evaluate.main(["--run", str(run)]) == 2
    assert said in capsys.readouterr().err and not (run / "evaluations").exists()


def test_other_weights_of_the_model_are_said(run, images, capsys, tmp_path):
    for path in checkpoints(run / "checkpoint"):
        tensors, info = read_checkpoint(path)
        info["model_sha256"] = "0" * 64
        save_checkpoint(path.parent, info.pop("round"), tensors, info)
    said = "the model's weights are not those that the run was trained with"
    with pytest.raises(FedPGPError, match=f"{said}.*restore them, or start a new run"):
        resume(run)
    asked = next((images / "test" / "dog").iterdir())
    assert evaluate.main(["--run", str(run)]) == 0
    assert predict.main(["--run", str(run), "--client", "0", str(asked)]) == 0
    assert export.main(["--run", str(run), "--client", "0", "--to", str(tmp_path / "to")]) == 0
    assert capsys.readouterr().err.count(f"warning: {said}") == 3


def test_a_copy_of_the_data_is_the_same(run, images, tmp_path, capsys):
    """Other times of the files, other place."""
    shutil.copytree(images, tmp_path / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(images)
    assert evaluate.main(["--run", str(run), f"dataset.root={tmp_path / 'copy'}"]) == 0
    shutil.copytree(tmp_path / "copy", images, copy_function=shutil.copyfile)
    resume(run)
    (path,) = (run / "evaluations").iterdir()
    ours, theirs = (json.loads(p.read_text())["accuracy"] for p in (path, run / "summary.json"))
    assert ours == theirs and not ours["personal"]["datasets"]


def test_another_folder_is_other_data(run, tmp_path):
    """With its own classes; where the run's own images are gone it is told what is different
    there."""
    for number, name in enumerate(("owl", "bee")):
        for split in ("train", "test"):
            image(tmp_path / "other" / split / name / "0.png", number)
    record = evaluate.evaluate(run, [f"dataset.root={tmp_path / 'other'}"])
    assert set(record["accuracy"]["personal"]["datasets"]) == {"folder other"}
    (tmp_path / "images").rename(tmp_path / "gone")
    with pytest.raises(
        FedPGPError, match="classes that are new: bee, owl; classes that are gone: cat, dog, fox"
    ):
        evaluate.evaluate(run, [f"dataset.root={tmp_path / 'other'}"])


@pytest.mark.parametrize("change", [add_class, shutil.rmtree])
def test_a_client_is_answered_for_with_the_classes_of_its_run_and_without_its_data(
    run, images, change, tmp_path
):
    asked = tmp_path / "asked.png"
    image(asked, 7)
    command = ["--run", str(run), "--client", "0"]
    assert export.main([*command, "--to", str(tmp_path / "before")]) == 0
    change(images)
    assert export.main([*command, "--to", str(tmp_path / "after")]) == 0
    one, other = ((tmp_path / name / "classifier.json").read_text() for name in ("before", "after"))
    assert one == other and json.loads(one)["classes"] == list(CLASSES)
    one, other = (
        (tmp_path / name / "classifier.safetensors").read_bytes() for name in ("before", "after")
    )
    assert one == other
    assert predict.main([*command, str(asked)]) == 0


def test_a_run_of_an_older_version_says_that_it_cannot_tell(run, images, capsys, tmp_path):
    for path in checkpoints(run / "checkpoint"):
        tensors, info = read_checkpoint(path)
        del info["data"]
        save_checkpoint(path.parent, info.pop("round"), tensors, info)
    said = (
        f"{run} was made before a run recorded its data: it is taken that they are still the same"
    )
    assert export.main(["--run", str(run), "--client", "0", "--to", str(tmp_path / "to")]) == 0
    assert evaluate.main(["--run", str(run)]) == 0
    assert capsys.readouterr().err.count(said) == 2
    resume(run)
    assert said in " ".join(capsys.readouterr().out.split())


def test_the_record_of_a_run_is_that_of_its_data(run):
    _, info = read_checkpoint(checkpoints(run / "checkpoint")[-1])
    now = data_record(build_federation(RunFolder.open(run)[1]).federated_split)
    assert json.loads(json.dumps(now)) == info["data"] and not data_changes(info["data"], now)
    assert (
        info["data"]["class_names"] == list(CLASSES)
        and info["data"]["pictures"]["train"]["images"] == 12
    )


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["seed=1"], ["which client owns or is tested on which images"]),
        (["partition.beta=0.9"], ["which client owns or is tested on which images"]),
        (["protocol=personal"], ["which client owns or is tested on which images"]),
        (
            ["dataset.domains=[noto]"],
            ["train images where there were", "test images where there were"],
        ),
        (["lr=0.5", "method=promptfl"], []),
    ],
)
def test_what_differs_between_two_splits(overrides, said):
    common = ["runtime=inline", "partition=dirichlet", "clients=4"]
    one, other = (
        data_record(build_federation(composed([*common, *words])).federated_split)
        for words in ([], overrides)
    )
    changed = data_changes(one, other)
    assert len(changed) == len(said) and all(
        words in line for words, line in zip(said, changed, strict=True)
    )
    assert bool(changed) == (one["split"] != other["split"])


def test_classes_in_another_order_are_other_classes(images):
    names = [list(CLASSES), list(reversed(CLASSES))]
    records = []
    for order in names:
        words = [
            "dataset=folder",
            f"dataset.root={images}",
            f"dataset.class_names=[{','.join(order)}]",
        ]
        words += ["partition=iid", "protocol=personal", "clients=2", "runtime=inline"]
        records.append(data_record(build_federation(composed(words)).federated_split))
    assert "the order of the classes" in data_changes(*records)


def test_a_table_of_the_hub_is_the_same_wherever_it_lies(images, tmp_path):
    pytest.importorskip("datasets")
    shutil.copytree(images, tmp_path / "elsewhere" / "copy", copy_function=shutil.copyfile)
    places = [(images.parent, "images"), (tmp_path / "elsewhere", "copy")]
    shutil.copytree(images, tmp_path / "elsewhere" / "changed")
    other_image(tmp_path / "elsewhere" / "changed")
    places = [
        (images.parent, "images"),
        *((tmp_path / "elsewhere", name) for name in ("copy", "changed")),
    ]
    one, copy, changed = (
        load_dataset("hub", root, repo=name).train.signature for root, name in places
    )
    assert one == copy != changed


def test_a_run_whose_images_have_moved_is_resumed_where_they_are(made, tmp_path):
    """And not on others: what the error advises works."""
    shutil.copytree(made / "run", tmp_path / "run")
    shutil.copytree(made / "images", tmp_path / "moved")
    words = ["resume=run", f"dataset.root={tmp_path}/moved", "rounds=2"]
    with contextlib.chdir(tmp_path):
        changes = changes_on_resume(composed(words), words, tmp_path / "run")
        assert resume(tmp_path / "run", changes)["rounds"] == 2
        image(tmp_path / "moved" / "train" / CLASSES[0] / "9.png", 99)
        words[2] = "rounds=3"
        with pytest.raises(FedPGPError, match="train"):
            resume(tmp_path / "run", changes_on_resume(composed(words), words, tmp_path / "run"))
