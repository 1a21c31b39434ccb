from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from fedpgp.data.subsets import base_novel, few_shot
from fedpgp.errors import FedPGPError

GOLDEN = load_file(Path(__file__).parents[2] / "golden" / "partitions.safetensors")


@given(st.integers(0, 9), st.integers(1, 12), st.lists(st.integers(0, 6), min_size=30, max_size=90))
def test_few_shot_takes_k_of_each_class_or_all_there_are(seed, shots, labels):
    labels = np.array(labels)
    counts = np.bincount(labels)
    if shots > counts.max():
        with pytest.raises(FedPGPError, match=f"shots={shots}"):
            few_shot(labels, shots, seed)
        return
    rows = few_shot(labels, shots, seed)
    assert (np.diff(rows) > 0).all()
    assert (np.bincount(labels[rows], minlength=len(counts)) == np.minimum(counts, shots)).all()
    assert np.array_equal(rows, few_shot(labels, shots, seed))


def test_few_shot_seeds_differ_and_classes_do_not_disturb_each_other():
    labels = np.repeat(np.arange(5), 40)
    assert not np.array_equal(few_shot(labels, 8, 0), few_shot(labels, 8, 1))
    without_last = few_shot(labels[labels < 4], 8, 0)
    assert np.array_equal(without_last, few_shot(labels, 8, 0)[: len(without_last)])


@pytest.mark.parametrize("shots", [0, -1, 41])
def test_few_shot_refuses_too_few_and_too_many(shots):
    with pytest.raises(FedPGPError, match=f"shots={shots}"):
        few_shot(np.repeat(np.arange(5), 40), shots, 0)


@pytest.mark.parametrize(
    ("classes", "base"), [(37, 19), (102, 51), (47, 24), (100, 50), (101, 51), (10, 5), (2, 1)]
)
def test_base_is_the_first_half_rounded_up(classes, base):
    ids = base_novel([f"c{i}" for i in range(classes)])
    assert ids == (list(range(base)), list(range(base, classes)))


def test_base_by_alphabet_sorts_upper_case_first():
    assert base_novel(["zebra", "apple_pie", "Yak", "apple tart"], order="alphabet") == (
        [2, 1],
        [3, 0],
    )


def test_base_novel_refusals():
    with pytest.raises(FedPGPError, match="did you mean alphabet"):
        base_novel(["a", "b"], order="alphabetic")
    with pytest.raises(FedPGPError, match="at least 2"):
        base_novel(["a"])


@pytest.mark.parametrize("case", ["classes23_clients4_shots8", "classes37_clients10_shots4"])
def test_golden_base_and_new_class_lists_exactly(case):
    classes = int(GOLDEN[f"{case}/train_labels"].max()) + 1
    base, novel = base_novel([str(i) for i in range(classes)])
    assert base == GOLDEN[f"{case}/base/original_labels"].tolist()
    assert novel == GOLDEN[f"{case}/new/original_labels"].tolist()
    test_labels = GOLDEN[f"{case}/test_labels"]
    assert np.array_equal(
        np.flatnonzero(np.isin(test_labels, novel)), np.sort(GOLDEN[f"{case}/new/test_indices"])
    )


@pytest.mark.parametrize(
    ("case", "shots"), [("classes23_clients4_shots8", 8), ("classes37_clients10_shots4", 4)]
)
def test_golden_few_shot_pool_by_its_counts(case, shots):
    labels, base = GOLDEN[f"{case}/train_labels"], GOLDEN[f"{case}/base/original_labels"]
    rows = np.flatnonzero(np.isin(labels, base))
    ours = rows[few_shot(labels[rows], shots, 0)]
    assert np.array_equal(
        np.bincount(labels[ours]), np.bincount(labels[GOLDEN[f"{case}/base/pool"]])
    )
