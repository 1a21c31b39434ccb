"""``hub``: real ``datasets`` on tables in a local folder, and its cache without a network."""

import pickle
import unicodedata

import numpy as np
import pytest
from PIL import Image

from fedpgp.data import Dataset, load_dataset
from fedpgp.data.datasets.hub import HubSplit
from fedpgp.data.images import Reading
from fedpgp.data.loading import without_broken
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
    """12 images a split, (class, domain) in turns; the red of an image is its row."""
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
            "image": [
                Image.new("RGB" if row else "L", (8, 6), (row * 10, 0, 0) if row else 0)
                for row, _, _ in rows
            ],
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
    assert [dataset.test.image(i).getpixel((0, 0)) for i in (0, 3, 11)] == [
        (0, 0, 0),
        (30, 0, 0),
        (110, 0, 0),
    ]
    assert dataset.notes == ("from the hub: me/things, splits train, validation, test",)
    named = load_dataset(
        "hub", tmp_path, repo="me/things", class_names=["Zebra", "Apple", "Mug"], template="{}"
    )
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
    assert (
        load_dataset(
            "hub", tmp_path, repo="words", class_names=["mug", "apple", "Yak"]
        ).train.labels[0]
        == 0
    )
    with pytest.raises(FedPGPError, match="4 images of words, train have no label among 2 classes"):
        load_dataset("hub", tmp_path, repo="words", class_names=["mug", "Yak"])
    write(tmp_path / "numbers", label=datasets.Value("int64"))
    with pytest.raises(FedPGPError, match="numbers without names"):
        load_dataset("hub", tmp_path, repo="numbers")
    assert load_dataset("hub", tmp_path, repo="numbers", class_names=NAMES).train.labels[
        :3
    ].tolist() == [0, 1, 2]


def test_bad_input_is_refused_by_name(tmp_path):
    write(tmp_path / "things")
    write(tmp_path / "unlabelled", numbers=[-1] * 12)
    write(tmp_path / "halves", label=datasets.Value("float64"), numbers=[0.5, 1.0] * 6)
    lists = datasets.List(datasets.Value("int64"))
    write(tmp_path / "lists", label=lists, numbers=[[0], [1]] * 6)
    for options, message in [
        ({}, "needs dataset.repo=OWNER/NAME"),
        ({"repo": "things", "test": "tests"}, "dataset.test of things 'tests'; did you mean test"),
        (
            {"repo": "things", "label": "labels"},
            "dataset.label of things 'labels'; did you mean label",
        ),
        ({"repo": "things", "image": "where"}, "dataset.image=where: .* no images"),
        ({"repo": "things", "domain": "city"}, "unknown dataset.domain of things 'city'"),
        ({"repo": "things", "class_names": ["a"]}, "class_names has 1 names, things has 3 classes"),
        ({"repo": "things", "template": "a photo"}, "needs exactly one {}"),
        ({"repo": "things", "template": None}, "needs exactly one {}"),
        ({"repo": "things", "train": None, "test": None}, "needs dataset.train or dataset.test"),
        ({"repo": "things", "class_names": "abc"}, "class_names='abc' is no list"),
        ({"repo": "things", "class_names": ["a", "A", "b"]}, "classes 'a' and 'A'"),
        ({"repo": "halves", "class_names": ["a", "b"]}, "6 images of halves, train have no label"),
        ({"repo": "lists"}, "dataset.label=label: this column of lists holds List"),
        ({"repo": "unlabelled"}, "12 images of unlabelled, train have no label"),
    ]:
        with pytest.raises(FedPGPError, match=message):
            load_dataset("hub", tmp_path, **options)


def test_what_is_not_in_the_cache_says_how_to_get_it(tmp_path, monkeypatch):
    with pytest.raises(FedPGPError) as error:
        load_dataset("hub", tmp_path, repo="nobody/nothing")
    for part in (
        "huggingface.co/datasets/nobody/nothing",
        "not in the hub's cache",
        "download=true",
        "HF_HOME",
    ):
        assert part in str(error.value)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with pytest.raises(FedPGPError, match="not in the hub's cache"):
        load_dataset("hub", tmp_path, repo="nobody/nothing")
    assert datasets.config.HF_HUB_OFFLINE is False, "the user's setting is left as it was"


def test_skip_leaves_out_rows_without_an_image_and_error_names_them(tmp_path):
    write(tmp_path / "good", ("train",))
    good = datasets.Dataset.from_parquet(str(tmp_path / "good" / "train-00000-of-00001.parquet"))
    entries = good.cast_column("image", datasets.Image(decode=False))["image"][:]
    entries[1], entries[4] = None, {"bytes": b"no image", "path": None}
    entries[6] = {"bytes": b"", "path": None}
    for split in ("train", "test"):
        table = (
            good.remove_columns("image")
            .add_column("image", entries)
            .cast_column("image", datasets.Image())
        )
        (tmp_path / "holes").mkdir(exist_ok=True)
        table.to_parquet(str(tmp_path / "holes" / f"{split}-00000-of-00001.parquet"))
    dataset = load_dataset("hub", tmp_path, repo="holes")
    for row, why in (
        (1, "no image in this row"),
        (4, "cannot identify"),
        (6, "cannot identify"),
    ):
        with pytest.raises(
            FedPGPError, match=rf"image {row} of holes, train cannot be read \(.*{why}"
        ):
            dataset.train.image(row)
    kept = load_dataset("hub", tmp_path, repo="holes", on_bad_image="skip")
    assert [kept.train.image(i).getpixel((0, 0))[0] // 10 for i in range(9)] == [
        0,
        2,
        3,
        5,
        7,
        8,
        9,
        10,
        11,
    ]
    assert kept.train.labels.tolist() == [0, 2, 0, 2, 1, 2, 0, 1, 2]
    assert kept.notes[-1].startswith(
        "6 broken images left out: 1 of holes, train, 4 of holes, train"
    )


def test_a_table_of_files_of_which_one_is_gone(tmp_path):
    for name in "ab":
        Image.new("RGB", (8, 6)).save(tmp_path / f"{name}.png")
    table = datasets.Dataset.from_dict({"image": [str(tmp_path / f"{name}.png") for name in "ab"]})
    split = HubSplit(
        table.cast_column("image", datasets.Image()), "image", "files", [0, 1], None, Reading()
    )
    assert [split.image(i).size for i in range(2)] == [(8, 6)] * 2
    (tmp_path / "b.png").unlink()
    with pytest.raises(FedPGPError, match="image 1 of files cannot be read .*No such file"):
        split.image(1)
    dataset = without_broken(Dataset("hub", ["a", "b"], "{}", split, None, split))
    assert dataset.train.labels.tolist() == [0]


def test_names_of_a_table_are_composed_and_tell_classes_apart(tmp_path):
    mac = unicodedata.normalize("NFD", "café")
    words = [("café", mac, "tea")[row % 3] for row in range(12)]
    write(tmp_path / "mac", label=datasets.Value("string"), numbers=words)
    dataset = load_dataset("hub", tmp_path, repo="mac")
    assert dataset.class_names == ["café", "tea"] and dataset.train.labels.tolist() == [0, 0, 1] * 4
    write(tmp_path / "twice", label=datasets.Value("string"), numbers=["Tea", "tea", "cat"] * 4)
    with pytest.raises(FedPGPError, match="classes 'Tea' and 'tea'"):
        load_dataset("hub", tmp_path, repo="twice")
    assert (
        load_dataset("hub", tmp_path, repo="mac", class_names=[mac, "tea"]).train.labels.tolist()
        == [0, 0, 1] * 4
    )


def test_images_without_a_domain_are_counted(tmp_path):
    write(tmp_path / "things")
    for part in ("train", "test"):
        path = str(tmp_path / "things" / f"{part}-00000-of-00001.parquet")
        table = datasets.Dataset.from_parquet(path)
        table = table.map(
            lambda row, i: {"where": None if i < 2 else row["where"]}, with_indices=True
        )
        table.to_parquet(path)
    with pytest.raises(FedPGPError, match="2 images of things, train have no domain"):
        load_dataset("hub", tmp_path, repo="things", domain="where")


def test_what_save_to_disk_wrote_is_read(tmp_path):
    write(tmp_path / "files")
    both = datasets.load_dataset(str(tmp_path / "files"))
    both.save_to_disk(str(tmp_path / "both"))
    both["train"].save_to_disk(str(tmp_path / "one"))
    datasets.Dataset.from_dict(both["train"][:], features=both["train"].features).save_to_disk(
        str(tmp_path / "bare")
    )
    expected = load_dataset("hub", tmp_path, repo="files")
    saved = load_dataset("hub", tmp_path, repo="both", domain="site")
    assert saved.class_names == NAMES and saved.test.domains == [
        DOMAINS[row // 3 % 2] for row in range(12)
    ]
    for part in ("train", "test"):
        ours, theirs = getattr(saved, part), getattr(expected, part)
        assert ours.labels.tolist() == theirs.labels.tolist()
        assert [ours.image(i).tobytes() for i in range(12)] == [
            theirs.image(i).tobytes() for i in range(12)
        ]
        assert (
            ours.fingerprint
            == getattr(load_dataset("hub", tmp_path, repo="both"), part).fingerprint
        )
    for repo in ("one", "bare"):
        whole = load_dataset("hub", tmp_path, repo=repo, test=None)
        assert len(whole.train) + len(whole.test) == 12
        with pytest.raises(
            FedPGPError, match="dataset.test of .* 'test'; choose one of train; dataset.test=null"
        ):
            load_dataset("hub", tmp_path, repo=repo)
    with pytest.raises(FedPGPError, match="leave out dataset.subset"):
        load_dataset("hub", tmp_path, repo="both", subset="x")
    before = load_dataset("hub", tmp_path, repo="bare", test=None).train.fingerprint
    both["test"].save_to_disk(str(tmp_path / "bare"))
    with pytest.raises(FedPGPError, match="dataset.train of bare 'train'; choose one of test"):
        load_dataset("hub", tmp_path, repo="bare", test=None)
    assert (
        load_dataset("hub", tmp_path, repo="bare", train="test", test=None).train.fingerprint
        != before
    )
    (tmp_path / "both" / "dataset_dict.json").write_text("rubbish")
    with pytest.raises(FedPGPError, match="both cannot be loaded from"):
        load_dataset("hub", tmp_path, repo="both")
