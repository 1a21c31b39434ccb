import csv
import multiprocessing
import pickle
import shutil

import numpy as np
import pytest

from fedpgp.assets_path import asset
from fedpgp.data import load_dataset
from fedpgp.data.datasets.emoji import DOMAINS
from fedpgp.errors import FedPGPError


@pytest.fixture(scope="module")
def emoji():
    return load_dataset("emoji")


def test_classes_domains_and_template(emoji):
    with asset("emoji", "classes.csv").open(encoding="utf-8") as file:
        assert emoji.class_names == [row["class"] for row in csv.DictReader(file)]
    assert len(set(emoji.class_names)) == len(emoji.class_names) >= 40
    assert emoji.template == "a photo of a {}."
    for split in (emoji.train, emoji.test):
        assert list(dict.fromkeys(split.domains)) == list(DOMAINS)
        for domain in DOMAINS:  # every domain has every class, in both splits
            mine = split.labels[np.array(split.domains) == domain]
            assert set(mine) == set(range(len(emoji.class_names)))
    assert emoji.val is None
    assert len(emoji.superclasses) == len(emoji.class_names)


def test_an_emoji_is_train_or_test_in_every_domain(emoji):
    train, test = ({name for _, name in split.members} for split in (emoji.train, emoji.test))
    assert not train & test
    assert 0.25 < len(test) / (len(train) + len(test)) < 0.35


def test_validation_takes_training_emoji_in_every_domain_and_opens_no_test_emoji(emoji):
    new = load_dataset("emoji", evaluate_on="validation")
    train, kept = (
        {split.split.members[row][1] for row in split.rows} for split in (new.train, new.test)
    )
    assert not train & kept and train | kept == {name for _, name in emoji.train.members}
    assert 0.15 < len(kept) / len(emoji.train) * 6 < 0.25
    for domain in DOMAINS:
        for split in (new.train, new.test):
            mine = split.labels[np.array(split.domains) == domain]
            assert set(mine) == set(range(len(emoji.class_names)))
    one = load_dataset("emoji", domains="noto", groups="food", evaluate_on="validation")
    assert {
        one.test.split.members[row][1] for row in one.test.rows
    } <= kept  # the same ones, whatever is asked for


def test_images_are_64x64_rgb_with_the_label_of_the_table(emoji):
    with asset("emoji", "emoji.csv").open(encoding="utf-8") as file:
        class_of = {row["codepoints"]: row["class"] for row in csv.DictReader(file)}
    for split in (emoji.train, emoji.test):
        for i in range(0, len(split), 97):
            image = split.image(i)
            assert image.size == (64, 64) and image.mode == "RGB"
            archive, name = split.members[i]
            assert archive.stem == split.domains[i]
            assert class_of[name.split(".")[0]] == emoji.class_names[split.labels[i]]


def test_a_subset_of_domains_in_fixed_order():
    both = load_dataset("emoji", domains=["openmoji", "noto"])
    assert list(dict.fromkeys(both.train.domains)) == ["noto", "openmoji"]
    assert set(load_dataset("emoji", domains="fluent").test.domains) == {"fluent"}
    with pytest.raises(FedPGPError, match="domain of emoji 'notto'; did you mean noto"):
        load_dataset("emoji", domains=["notto"])


def test_same_fingerprint_every_time_and_another_for_other_domains(emoji):
    assert (
        load_dataset("emoji").train.fingerprint == emoji.train.fingerprint != emoji.test.fingerprint
    )
    assert load_dataset("emoji", domains=["noto"]).train.fingerprint != emoji.train.fingerprint


def _pixels(split, i, queue):
    queue.put(np.asarray(split.image(i)).sum())


def test_works_when_pickled_and_when_forked_while_open(emoji):
    expected = [np.asarray(emoji.train.image(i)).sum() for i in (0, 1)]
    again = pickle.loads(pickle.dumps(emoji.train))
    assert [np.asarray(again.image(i)).sum() for i in (0, 1)] == expected
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_pixels, args=(emoji.train, 1, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=30) for _ in workers] == [expected[1]] * 2
    for worker in workers:
        worker.join()


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The assets in a folder of their own, found by the environment variable."""
    shutil.copytree(asset("emoji"), tmp_path / "assets" / "emoji")
    monkeypatch.setenv("FEDPGP_ASSETS", str(tmp_path / "assets"))
    return tmp_path / "assets" / "emoji"


def test_truncated_files_are_named(copy):
    load_dataset("emoji")
    noto = copy / "noto.zip"
    whole = noto.read_bytes()
    noto.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FedPGPError, match=r"noto\.zip cannot be read"):
        load_dataset("emoji")
    load_dataset("emoji", domains=["twemoji"])
    noto.write_bytes(
        whole[:2000] + bytes(500) + whole[2500:]
    )  # whole table of contents, one image damaged
    split = load_dataset("emoji", domains=["noto"])
    with pytest.raises(FedPGPError, match=r"of .*noto\.zip cannot be read"):
        for i in range(len(split.train)):
            split.train.image(i)
        for i in range(len(split.test)):
            split.test.image(i)


def test_damaged_tables_are_named(copy):
    lines = (copy / "classes.csv").read_text().splitlines(keepends=True)
    (copy / "classes.csv").write_text("".join(lines[:10]))
    with pytest.raises(FedPGPError, match=r"classes\.csv lacks classes"):
        load_dataset("emoji")
    (copy / "classes.csv").write_text("")
    with pytest.raises(FedPGPError, match=r"classes\.csv is empty or truncated"):
        load_dataset("emoji")
