"""``--client`` by number, or by the name of the site."""

import json

import pytest

from experiments.asked_client import asked_client
from fedpgp.errors import FedPGPError

ROWS = [
    {"id": 0, "domain": None, "name": "Bern"},
    {"id": 1, "domain": "west", "name": "Zu\u0308rich"},
    {"id": 2, "domain": "east", "name": "0"},
    {"id": 3, "domain": "east", "name": "Basel"},
    {"id": 4, "domain": "south", "name": "Basel"},
]


@pytest.fixture
def run(tmp_path):
    (tmp_path / "partition.json").write_text(json.dumps({"clients": ROWS}))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "client"),
    [("Bern", 0), ("Z\u00fcrich", 1), ("west", 1), ("3", 3), ("99", 99), ("-1", -1)],
)
def test_whom_a_text_means(run, text, client):
    assert asked_client(run, text) == client


def test_a_number_is_never_a_name_unnoticed(run, capsys):
    assert asked_client(run, "0") == 0
    assert "the one of this name is --client 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Basle", "unknown client 'Basle'; did you mean Basel"),
        ("Basel", "2 clients are called 'Basel'; give a number: --client 3 or --client 4"),
        ("east", "2 clients are called 'east'"),
        ("9" * 400, "unknown client '999"),
        ("x\x1b[2J", "unknown client 'x'"),
    ],
)
def test_names_of_nobody_and_of_several(run, text, said):
    with pytest.raises(FedPGPError, match=said):
        asked_client(run, text)


@pytest.mark.parametrize("text", ["[1]", "rubbish", '{"clients": [{"id": 0, "name": 5}]}'])
def test_a_run_without_names(tmp_path, text):
    (tmp_path / "partition.json").write_text(text)
    with pytest.raises(FedPGPError, match="the clients of this run have no names; give a number"):
        asked_client(tmp_path, "Bern")
    assert asked_client(tmp_path, "7") == 7
