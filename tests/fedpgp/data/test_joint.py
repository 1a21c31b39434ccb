"""Several data sets as one."""

import numpy as np
import pytest

from fedpgp.client_table import client_table
from fedpgp.data import ArraySplit, Dataset
from fedpgp.data.joint import join
from fedpgp.data_record import data_record, recorded_split
from fedpgp.errors import FedPGPError
from fedpgp.protocols import ClientSplit, EvalSet, FederatedSplit
from fedpgp.task import Task
from tests.helpers.golden import golden_clip

PET = "a photo of a {}, a type of pet."


def small(name: str, classes: list[str], template: str = "a photo of a {}.") -> Dataset:
    images = ArraySplit(np.zeros((len(classes), 4, 4, 3), dtype=np.uint8), range(len(classes)))
    return Dataset(name, classes, template, images, None, images)


@pytest.fixture
def joint() -> Dataset:
    things = small("things", ["dog", "sea_horse", "missile", "missile"])
    pets = small("pets", ["Dog", "cat"], PET)
    sketches = small("sketches", ["Sea horse", "dog", "missile"])
    return join([things, pets, sketches], ["things", "pets", "sketches"])[0]


def test_a_name_of_several_data_sets_is_shown_with_its_own(joint):
    things = ["dog (things)", "sea_horse (things)", "missile (things)", "missile (things)"]
    assert joint.shown_names == [
        *things,
        *("Dog (pets)", "cat"),
        *("Sea horse (sketches)", "dog (sketches)", "missile (sketches)"),
    ]
    alone = small("things", ["dog", "missile", "missile"])
    assert alone.shown_names == alone.class_names


def test_a_class_that_an_earlier_data_set_has_is_offered_once(joint):
    """Not where its template differs, nor where a published list has a name twice."""
    assert joint.without_repeats(range(9)) == (0, 1, 2, 3, 4, 5)
    assert joint.without_repeats((4, 7, 8)) == (4, 7, 8)


def test_a_record_knows_which_class_is_of_which_data_set(joint):
    nobody = np.empty(0, dtype=np.int64)
    clients = [ClientSplit(nobody, (0, 1), {"local": EvalSet(nobody, (0, 1))})]
    record = data_record(FederatedSplit(joint, (0, 1), (), clients))
    assert recorded_split(record, "things").dataset.shown_names == joint.shown_names
    del record["data_sets"]  # of a run that is older
    assert recorded_split(record, "things").dataset.shown_names == joint.class_names


def test_one_text_is_refused_in_one_data_set_and_not_in_two(joint):
    names = ["dog", "Dog"]
    with pytest.raises(FedPGPError, match="classes 'dog' and 'Dog' are the same tokens"):
        Task(golden_clip(), names).class_set((0, 1))
    assert Task(golden_clip(), names, sources=("things", "pets")).class_set((0, 1)).names == names


def test_a_name_that_is_there_twice_keeps_all_its_images():
    images = ArraySplit(np.zeros((5, 4, 4, 3), dtype=np.uint8), [0, 1, 1, 2, 2])
    dataset = Dataset("small", ["missile", "dog", "missile"], PET, images, None, images)
    rows = np.arange(5)
    client = ClientSplit(rows, (0, 1, 2), {"local": EvalSet(rows, (0, 1, 2))})
    (row,) = client_table(FederatedSplit(dataset, (0, 1, 2), (), [client]))
    assert row["train_counts"] == row["test_counts"] == {"missile": 3, "dog": 2}
