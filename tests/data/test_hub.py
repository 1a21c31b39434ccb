"""``hub``: real ``datasets`` on tables in a local folder, and its cache without a network."""

import pickle

import numpy as np
import pytest
from PIL import Image

from fedpgp.data import load_dataset
from fedpgp.errors import FedPGPError

datasets = pytest.importorskip("datasets")

NAMES = ["zebra", "apple", "mug"]
DOMAINS = ["photo", "sketch"]


@pytest.fixture(autouse=True)
def own_hub(tmp_path_factory, monkeypatch):
    """No test asks the network or leaves anything in the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hub"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def write(folder, splits=("train", "test"), label=None, numbers=None):
    """12 pictures a split, (class, domain) in turns; the red of a picture is its row."""
    folder.mkdir(parents=True)
    rows = [(row, row % 3, row // 3 % 2) for row in range(12)]
    features = {
        "image": datasets.Image(),
        "label": label or datasets.ClassLabel(names=NAMES),
        "where": datasets.Value("string"),
        "site": datasets.ClassLabel(names=DOMAINS),
    }
    for split in splits:
        content = {
            "image": [Image.new("RGB" if row else "L", (8, 6), (row * 10, 0, 0) if row else 0) for row, _, _ in rows],
            "label": numbers or [k for _, k, _ in rows],
            "where": [DOMAINS[d] for _, _, d in rows],
            "site": [d for _, _, d in rows],
        }
        table = datasets.Dataset.from_dict(content, features=datasets.Features(features))
        table.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))


def test_names_columns_and_splits(tmp_path):
    write(tmp_path / "me" / "things", ("train", "validation", "test"))
    dataset = load_dataset("hub", tmp_path, repo="me/things", val="validation")
    assert dataset.class_names == NAMES and dataset.template == "a photo of a {}."
    assert [len(s) for s in (dataset.train, dataset.val, dataset.test)] == [12, 12, 12]
    assert dataset.train.labels.tolist() == [0, 1, 2] * 4 and dataset.train.labels.dtype == np.int64
    assert dataset.train.domains is None
    assert [dataset.test.image(i).getpixel((0, 0)) for i in (0, 3, 11)] == [(0, 0, 0), (30, 0, 0), (110, 0, 0)]
    assert dataset.notes == ("from the hub: me/things, splits train, validation, test",)
    named = load_dataset("hub", tmp_path, repo="me/things", class_names=["Zebra", "Apple", "Mug"], template="{}")
    assert (named.class_names, named.template) == (["Zebra", "Apple", "Mug"], "{}")
    assert load_dataset("hub", tmp_path, repo="me/things", train=None).train is None


def test_a_split_is_known_by_its_fingerprint_and_can_be_sent(tmp_path):
    write(tmp_path / "things")
    first, again = (load_dataset("hub", tmp_path, repo="things") for _ in range(2))
    assert first.train.fingerprint == again.train.fingerprint != first.test.fingerprint
    sent = pickle.loads(pickle.dumps(first.train))
    assert sent.image(5).getpixel((0, 0)) == (50, 0, 0)
    assert first.train.describe(5) == "5 of things, train"


@pytest.mark.parametrize("column", ["where", "site"])
def test_without_a_test_split_a_fifth_of_each_class_and_domain_is_for_testing(tmp_path, column):
    write(tmp_path / "things", ("train",))
    dataset = load_dataset("hub", tmp_path, repo="things", domain=column, test=None)
    assert (len(dataset.train), len(dataset.test)) == (6, 6)  # one of two in each of the six groups
    rows = sorted([*dataset.train.rows.tolist(), *dataset.test.rows.tolist()])
    assert rows == list(range(12))
    for split in (dataset.train, dataset.test):
        for i in range(len(split)):
            row = split.image(i).getpixel((0, 0))[0] // 10
            assert (split.labels[i], split.domains[i]) == (row % 3, DOMAINS[row // 3 % 2])
    again = load_dataset("hub", tmp_path, repo="things", domain=column, test=None)
    assert again.test.rows.tolist() == dataset.test.rows.tolist()


def test_words_and_bare_numbers_as_labels(tmp_path):
    words = [("mug", "Yak", "apple")[row % 3] for row in range(12)]
    write(tmp_path / "words", label=datasets.Value("string"), numbers=words)
    dataset = load_dataset("hub", tmp_path, repo="words")
    assert dataset.class_names == ["Yak", "apple", "mug"]
    assert [dataset.class_names[label] for label in dataset.train.labels] == words
    assert load_dataset("hub", tmp_path, repo="words", class_names=["mug", "apple", "Yak"]).train.labels[0] == 0
    with pytest.raises(FedPGPError, match="4 pictures of words, train have no label among 2 classes"):
        load_dataset("hub", tmp_path, repo="words", class_names=["mug", "Yak"])
    write(tmp_path / "numbers", label=datasets.Value("int64"))
    with pytest.raises(FedPGPError, match="numbers without names"):
        load_dataset("hub", tmp_path, repo="numbers")
    assert load_dataset("hub", tmp_path, repo="numbers", class_names=NAMES).train.labels[:3].tolist() == [0, 1, 2]


def test_bad_input_is_refused_by_name(tmp_path):
    write(tmp_path / "things")
    write(tmp_path / "unlabelled", numbers=[-1] * 12)
    for options, message in [
        ({}, "needs dataset.repo=OWNER/NAME"),
        ({"repo": "things", "test": "tests"}, "dataset.test of things 'tests'; did you mean test"),
        ({"repo": "things", "label": "labels"}, "dataset.label of things 'labels'; did you mean label"),
        ({"repo": "things", "image": "where"}, "dataset.image=where: .* no pictures"),
        ({"repo": "things", "domain": "city"}, "unknown dataset.domain of things 'city'"),
        ({"repo": "things", "class_names": ["a"]}, "class_names has 1 names, things has 3 classes"),
        ({"repo": "things", "template": "a photo"}, "needs exactly one {}"),
        ({"repo": "things", "train": None, "test": None}, "needs dataset.train or dataset.test"),
        ({"repo": "unlabelled"}, "12 pictures of unlabelled, train have no label"),
    ]:
        with pytest.raises(FedPGPError, match=message):
            load_dataset("hub", tmp_path, **options)


def test_what_is_not_in_the_cache_says_how_to_get_it(tmp_path, monkeypatch):
    with pytest.raises(FedPGPError) as error:
        load_dataset("hub", tmp_path, repo="nobody/nothing")
    for part in ("huggingface.co/datasets/nobody/nothing", "not in the hub's cache", "download=true", "HF_HOME"):
        assert part in str(error.value)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with pytest.raises(FedPGPError, match="not in the hub's cache"):
        load_dataset("hub", tmp_path, repo="nobody/nothing")
    assert datasets.config.HF_HUB_OFFLINE is False, "the user's setting is left as it was"
