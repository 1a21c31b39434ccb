"""What the machine can do, has and lacks."""

import json
import shutil

import huggingface_hub.constants
import pytest

from experiments import doctor
from experiments.checkup import duration, holdings, machine
from experiments.checkup.public_data import FACTS, WEIGHTS
from experiments.settings import composed
from fedpgp.clip.loading import SHORT_NAMES
from fedpgp.config import Config
from fedpgp.data import DATASETS
from fedpgp.data.store import CACHE_VARIABLE
from tests.fedpgp.data.datasets.test_public import oxford_pets


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A machine without data and weights; its home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FEDPGP_DATA", str(tmp_path / "data"))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def test_every_public_data_set_and_model_is_known():
    assert set(FACTS) == set(DATASETS) - set(holdings.SHIPPED_OR_OWN)
    assert set(WEIGHTS) == set(SHORT_NAMES)


def test_what_is_missing_is_said_with_where_it_comes_from(empty, capsys):
    to = empty / "found.json"
    asked = ["--experiment", "paper_base2novel", "--no-run", "--json", str(to)]
    assert doctor.main(asked) == doctor.MISSING
    said, found = capsys.readouterr().out, json.loads(to.read_text())
    five = ["oxford_pets", "flowers102", "dtd", "caltech101", "food101"]
    assert found["missing"] == [*five, "weights of vit_b16"]
    by_name = {each["dataset"]: each for each in found["data_sets"]}
    pets = by_name["oxford_pets"]
    assert pets["size"] == "774 MiB" and pets["licence"] == "CC BY-SA 4.0"
    assert "robots.ox.ac.uk" in pets["address"] and pets["folder"].startswith(str(empty))
    assert "load_dataset('oxford_pets', download=True)" in pets["command"]
    assert by_name["imagenet"]["command"] is None and all(not e["found"] for e in by_name.values())
    for text in ("CC BY-SA 4.0", "hf download timm/", "cannot run: missing oxford_pets", "Machine"):
        assert text in said
    assert not (empty / "data").exists() and not (empty / "cache").exists()


def test_what_is_there_is_found(empty):
    oxford_pets(empty / "data" / "oxford_pets")
    (pets,) = holdings.data_sets(["oxford_pets"])
    assert (pets["classes"], pets["train"], pets["test"]) == (3, 6, 6)
    shutil.rmtree(empty / "data" / "oxford_pets" / "annotations")
    (empty / "data" / "oxford_pets" / "split_zhou_OxfordPets.json").write_text("{")
    (damaged,) = holdings.data_sets(["oxford_pets"])
    assert damaged["found"] is None and "split_zhou_OxfordPets.json" in damaged["problem"]
    (missing,) = holdings.weights(["vit_b16"])
    assert missing["found"] is None and missing["licence"] == "MIT"
    assert missing["address"].startswith("https://huggingface.co/timm/")
    archive = empty / ".cache" / "clip" / "ViT-B-16.pt"
    archive.parent.mkdir(parents=True)
    archive.touch()
    (found,) = holdings.weights(["vit_b16"])
    assert found["found"] == str(archive) and found["use"].endswith("~/.cache/clip/ViT-B-16.pt")
    repository = empty / "hub" / "models--timm--vit_base_patch16_clip_224.openai"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "snapshots" / "abc" / "open_clip_model.safetensors").touch()
    (found,) = holdings.weights(["vit_b16"])
    assert (
        found["found"].endswith("open_clip_model.safetensors") and found["use"] == "model=vit_b16"
    )
    assert holdings.weights_of(composed(["experiment=paper_base2novel"]))["found"]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["experiment=smoke"], []),
        (["experiment=paper_cifar10"], ["cifar10"]),
        (["experiment=fedtpg_cross_domain"], ["imagenet", "imagenetv2", "imagenet_sketch"]),
        (["experiment=fedtpg_cross_class"], ["caltech101", "oxford_pets"]),
        (["dataset=imagenet", "protocol=cross_dataset", "protocol.targets=[dtd]"], None),
    ],
)
def test_the_data_that_a_run_reads(words, names):
    found = holdings.data_of(composed(words))
    assert found == ["imagenet", "dtd"] if names is None else set(names) <= set(found)
    assert bool(found) == bool(names or names is None)


def test_an_experiment_of_shipped_data_lacks_nothing(empty, capsys):
    assert doctor.main(["--experiment", "smoke", "--no-run"]) == 0
    assert "smoke has all that it needs" in capsys.readouterr().out
    assert doctor.main(["--experiment", "smok"]) == 2
    assert "did you mean smoke" in capsys.readouterr().err


def test_how_much_the_papers_run_computes():
    """By hand: 19 base classes of 16 images on 10 clients, batches of 16 that are full, 25 rounds
    of 2 epochs, each image anew in each; evaluated before, in each of 25 rounds and at the end."""
    config = Config.of(composed(["recipe=paper", "dataset=oxford_pets", "method=fedpgp"]))
    amount = duration.Amount.of(config, [FACTS["oxford_pets"]], FACTS["oxford_pets"])
    assert config.evaluate_every == 1 and amount.classes == 19
    assert amount.steps == 25 * 10 * 2 * 1 + 27 * 10
    assert amount.images == 25 * 2 * 19 * 16 + 3669
    few = Config.of(composed(["experiment=paper_cifar100", "method=fedpgp"]))
    amount = duration.Amount.of(few, [FACTS["cifar100"]], FACTS["cifar100"])
    assert amount.classes == 100
    assert amount.steps == 150 * 10 * 1 * (500 // 32) + (2 + 15) * 100
    assert amount.images == 150 * 10 * 500 + 10_000


def test_the_time_of_a_run_is_measured():
    words = ["recipe=paper", "dataset=oxford_pets", "model=tiny", "n_ctx=4", "device=cpu"]
    memory = machine.memory()
    found = duration.estimate(composed([*words, "method=promptfl"]), 6, memory, [])
    assert found["step_seconds"] > 0 and found["image_seconds"] > 0 and found["device"] == "cpu"
    assert found["seconds"] == pytest.approx(
        found["steps"] * found["step_seconds"] + found["images"] * found["image_seconds"]
    )
    assert found["table_seconds"] == pytest.approx(6 * found["seconds"])
    assert found["fits"] == (found["needed"] <= memory["total"])
    assert not duration.can_be_estimated(composed([]))
    assert not duration.can_be_estimated(composed([*words, "method=zero_shot"]))


def test_the_machine_is_looked_up():
    one, memory = machine.processor(), machine.memory()
    assert one["usable"] >= 1 and one["threads"] >= 1 and one["name"]
    assert 0 < memory["free"] <= memory["total"]
    assert machine.versions()["torch"] and machine.versions()["flwr"]
    for each in machine.folders(holdings.hub_folder()):
        assert each["free"] > 0 and isinstance(each["writable"], bool)
