"""``conf/dataset`` and ``conf/partition`` name what there is, with the options that it has."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import yaml

from fedpgp.data import DATASETS, SCHEMES, load_dataset, partition
from fedpgp.data.partitions.base import COMMON
from fedpgp.errors import FedPGPError
from fedpgp.protocols import SplitRequest, split_clients

CONF = Path(__file__).parents[3] / "conf"
DATASET_FILES = sorted((CONF / "dataset").glob("*.yaml"))
PARTITION_FILES = sorted(
    path for path in (CONF / "partition").glob("*.yaml") if path.stem != "own"
)  # splits nothing


def options(function):
    return {
        p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY
    }


def test_every_data_set_and_partition_has_its_file():
    assert {path.stem for path in DATASET_FILES} == set(DATASETS)
    assert {path.stem for path in PARTITION_FILES} == set(SCHEMES)


@pytest.mark.parametrize("path", DATASET_FILES, ids=lambda path: path.stem)
def test_data_set_file(path):
    text = path.read_text()
    content = yaml.safe_load(text)
    assert (
        text.startswith("# python -m experiments.")
        and f"dataset={path.stem}" in text.splitlines()[0]
    )
    assert content["name"] == path.stem
    assert {"root", "download", "on_bad_image", "views", "evaluate_on"} <= set(content)
    loader = DATASETS[path.stem]
    assert set(content) - {"name", "root", "on_bad_image", "views", "evaluate_on"} <= options(
        loader
    )
    defaults = {p.name: p.default for p in inspect.signature(loader).parameters.values()}
    for key in set(content) & options(loader) - {"download", "repo"}:
        assert content[key] == defaults[key], key


@pytest.mark.parametrize("path", PARTITION_FILES, ids=lambda path: path.stem)
def test_partition_file(path):
    text = path.read_text()
    content = yaml.safe_load(text)
    assert (
        text.startswith("# python -m experiments.run ")
        and f"partition={path.stem}" in text.splitlines()[0]
    )
    assert content.pop("scheme") == path.stem
    assert set(content) <= options(SCHEMES[path.stem].assign) | set(COMMON)
    assert (content["min_size"], content["min_test_size"], content.get("pooled", False)) == (
        1,
        1,
        False,
    )


@pytest.mark.parametrize(
    "protocol", [{"name": "personal"}, {"name": "base2novel", "class_order": "alphabet"}]
)
def test_pachinko_splits_by_the_superclasses_of_the_classes_that_are_trained(protocol):
    data = load_dataset("emoji", domains="noto")
    scheme = yaml.safe_load((CONF / "partition" / "pachinko.yaml").read_text())
    federated_split = split_clients(SplitRequest(data, 3, 0, None, scheme), protocol)
    base = list(federated_split.base_classes)
    rows = np.flatnonzero(np.isin(data.train.labels, base))
    columns = [base.index(label) for label in data.train.labels[rows]]
    test_columns = [base.index(label) for label in data.test.labels if label in base]
    options = {
        "beta": 0.3,
        "beta_fine": 10,
        "superclasses": [int(data.superclasses[label]) for label in base],
    }
    parts, _ = partition(columns, 3, "pachinko", 0, test_labels=test_columns, **options)
    assert [client_split.train.tolist() for client_split in federated_split.clients] == [
        rows[part].tolist() for part in parts
    ]


def test_pachinko_needs_superclasses(tmp_path, draw):
    for part in ("train", "test"):
        for name in ("a", "b"):
            draw(tmp_path / part / name / "1.png")
    with pytest.raises(
        FedPGPError, match="pachinko needs a data set whose classes have superclasses"
    ):
        split_clients(
            SplitRequest(load_dataset("folder", tmp_path), 2, 0, None, {"scheme": "pachinko"}),
            {"name": "personal"},
        )
