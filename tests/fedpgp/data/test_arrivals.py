"""A client's own folder grows during a run: which images it has in which round."""

import stat
from functools import partial

import numpy as np
import pytest

from experiments.settings import composed
from fedpgp.build import look_for_images, split_configured
from fedpgp.config import Config
from fedpgp.data import arrivals, load_dataset
from fedpgp.data.arrivals import ImageList, arrived, look
from fedpgp.data.images import Reading
from fedpgp.data.subsets import few_shot, few_shot_as_they_came
from fedpgp.errors import FedPGPError
from fedpgp.private_data import images_arrive, split_private_data

NAMES = ["cat", "dog"]


@pytest.fixture
def site(tmp_path, draw, monkeypatch):
    """A folder with two images of a class, and how it is looked at: (folder, look, images)."""
    monkeypatch.setattr(arrivals, "SETTLED", 0.0)
    folder, path = tmp_path / "site", tmp_path / "state" / "images.json"
    path.parent.mkdir()
    for part in ("train", "test"):
        for i in range(2):
            draw(folder / part / "cat" / f"{i}.png")

    def listed():
        return load_dataset("folder", folder, class_names=NAMES, unknown_classes="skip")

    def images(server_round=None):
        return arrived(path, folder, NAMES, "a {}.", Reading(), server_round)

    return folder, partial(look, path, listed), images, path


def test_a_round_has_what_was_there_when_it_began(site, draw):
    folder, look, images, path = site
    assert look(None) == [] and len(images(0).train) == 2
    draw(folder / "train" / "dog" / "new.png")
    assert len(images(1).train) == 2, "nobody has looked yet"
    look(1)
    assert [len(images(r).train) for r in (0, 1, 2, None)] == [2, 3, 3, 3]
    draw(folder / "train" / "dog" / "later.png")
    look(1)  # the round is asked for again: it has what it had
    assert len(images(1).train) == len(images(None).train) == 3
    look(3)
    assert [len(images(r).train) for r in (0, 1, 2, 3)] == [2, 3, 3, 4]
    assert images(3).train.labels.tolist() == [0, 0, 1, 1]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_was_encoded_before_is_a_part_of_its_own(site, draw):
    folder, look, images, _ = site
    look(None)
    before = images(0).train.fingerprint
    draw(folder / "train" / "cat" / "new.png")
    look(1)
    assert [part.fingerprint for part in images(1).train.parts][:1] == [before]
    assert images(1).test.fingerprint == images(0).test.fingerprint


def test_a_handshake_between_rounds_counts_from_the_next_one_on(site, draw):
    folder, look, images, _ = site
    look(None)
    look(2)
    draw(folder / "train" / "cat" / "new.png")
    look(None)
    assert [len(images(r).train) for r in (2, 3)] == [2, 3]


def test_a_folder_that_is_empty_at_first(tmp_path, draw, monkeypatch):
    monkeypatch.setattr(arrivals, "SETTLED", 0.0)
    folder, path = tmp_path / "site", tmp_path / "images.json"
    folder.mkdir()
    listed = partial(load_dataset, "folder", folder, class_names=NAMES, unknown_classes="skip")
    (said,) = look(path, listed, None)
    assert "no images in" in said
    assert look(path, listed, None) == [], "said once"
    empty = arrived(path, folder, NAMES, "a {}.", Reading(), None)
    assert len(empty.train) == len(empty.test) == 0
    for i in range(3):
        draw(folder / "cat" / f"{i}.png")
    look(path, listed, 1)
    now = arrived(path, folder, NAMES, "a {}.", Reading(), None)
    assert len(now.train) == 2 and len(now.test) == 1


@pytest.mark.parametrize("what", ["changed", "removed"])
def test_only_additions_are_taken(site, draw, what):
    folder, look, images, _ = site
    look(None)
    image = folder / "train" / "cat" / "1.png"
    if what == "changed":
        draw(image, size=(40, 40))
    else:
        image.unlink()
    draw(folder / "train" / "cat" / "new.png")
    for server_round in (1, None):
        with pytest.raises(FedPGPError, match=f"{what}: train/cat/1.png. Restore them"):
            look(server_round)
    assert len(images(None).train) == 2
    draw(image)
    look(1)
    assert len(images(1).train) == 3


def test_a_file_that_is_being_written_waits_for_the_next_round(site, draw, monkeypatch):
    folder, look, images, _ = site
    look(None)
    whole = draw(folder / "whole.png", size=(64, 64)).read_bytes()
    (folder / "whole.png").unlink()
    half = folder / "train" / "cat" / "half.png"
    half.write_bytes(whole[: len(whole) // 2])
    (said,) = look(1)
    assert "not taken yet: unreadable, or just written: train/cat/half.png" in said
    assert look(2) == [] and len(images(2).train) == 2
    half.write_bytes(whole)
    monkeypatch.setattr(arrivals, "SETTLED", 3600.0)
    look(3)
    assert len(images(3).train) == 2, "whole, and too young to be sure of it"
    monkeypatch.setattr(arrivals, "SETTLED", 0.0)
    look(4)
    assert len(images(4).train) == 3


def test_the_first_look_waits_for_files_that_were_just_written(site, monkeypatch):
    _, look, images, _ = site
    monkeypatch.setattr(arrivals, "SETTLED", 3600.0)
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        monkeypatch.setattr(arrivals, "SETTLED", 0.0)

    monkeypatch.setattr(arrivals.time, "sleep", sleep)
    look(None)
    assert waits == [3600.0] and len(images(None).train) == 2


def test_classes_that_the_run_does_not_know_are_named_and_left_out(site, draw):
    folder, look, images, _ = site
    look(None)
    draw(folder / "train" / "owl" / "new.png")
    (said,) = look(1)
    assert "classes that dataset.class_names lacks: owl" in said
    assert len(images(1).train) == 2 and look(2) == []


def test_an_image_stays_in_its_part(tmp_path, draw, monkeypatch):
    """Where files are divided by their names, a new one may move the bound; nobody else moves."""
    monkeypatch.setattr(arrivals, "SETTLED", 0.0)
    folder, path = tmp_path / "site", tmp_path / "images.json"
    listed = partial(load_dataset, "folder", folder, class_names=NAMES)
    known = {}
    for i in range(30):
        draw(folder / "cat" / f"{i}.png")
        look(path, listed, i)
        now = {
            name: part
            for one in ImageList.read(path).arrivals
            for part in ("train", "test")
            for name, _, _ in getattr(one, part)
        }
        assert known.items() <= now.items() and len(now) == i + 1
        known = now
    assert 4 <= list(known.values()).count("test") <= 14


def test_a_damaged_list_is_refused_by_name(site):
    _, look, _, path = site
    path.write_text("{")
    with pytest.raises(FedPGPError, match="images.json, the list of this run's images, cannot"):
        look(None)


def test_few_shots_that_were_drawn_stay():
    labels = np.array([0, 0, 0, 1, 0, 1, 1, 2])
    first = few_shot(labels[:4], 2, 5)
    np.testing.assert_array_equal(few_shot_as_they_came(labels[:4], [0, 4], 2, 5), first)
    more = few_shot_as_they_came(labels, [0, 4, 8], 2, 5)
    assert set(first) <= set(more)
    assert np.bincount(labels[more]).tolist() == [2, 2, 1]
    assert few_shot_as_they_came(labels[:0], [0], 2, 5).tolist() == []


# The configuration of a node. ---------------------------------------------------------------------


def config_of(folder, path=None, server_round=None, words=()):
    own = ["partition=own", "dataset=folder", "protocol=personal", "clients=1"]
    config = composed([*own, "dataset.class_names=[cat,dog]", *words])
    config["dataset"]["root"] = str(folder)
    config["partition"] |= {"client": 0, "images_arrive": True}
    config["partition"] |= {"image_list": path and str(path), "image_round": server_round}
    return config


def test_a_node_trains_on_the_images_of_its_round(site, draw):
    folder, _, _, path = site
    look_for_images(config_of(folder, path), None)
    draw(folder / "train" / "dog" / "new.png")
    look_for_images(config_of(folder, path), 4)

    def split(server_round, *words):
        config = Config.of(config_of(folder, path, server_round, words=words))
        return split_private_data(config, None)

    assert [len(split(r).clients[0].train) for r in (3, 4, None)] == [2, 3, 3]
    assert len(split(None, "shots=1").clients[0].train) == 2
    assert len(split(3).clients[0].test) == 2


def test_without_a_list_a_folder_is_read_as_it_is(tmp_path):
    tmp_path.joinpath("site").mkdir()
    found = split_configured(config_of(tmp_path / "site"))
    assert len(found.clients[0].train) == 0 and "no images in" in found.dataset.notes[0]
    with pytest.raises(FedPGPError, match="evaluate_on=validation takes images out of training"):
        split_configured(config_of(tmp_path, words=["dataset.evaluate_on=validation"]))


def test_only_clients_own_folders_grow(tmp_path):
    config = config_of(tmp_path)
    assert images_arrive(Config.of(config))
    config["partition"]["images_arrive"] = False
    assert not images_arrive(Config.of(config))
    config["partition"] = {"scheme": "iid", "images_arrive": True}
    assert not images_arrive(Config.of(config))
