"""Sites: one layout for a simulation (``partition=natural``) and a deployment
(``partition=own``), end to end."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from clients.client_app import client_app
from experiments import evaluate
from experiments.runner import start
from experiments.settings import composed
from fedpgp.build import split_configured
from strategies import node_registry
from tests.helpers.nodes import Nodes

CLASSES = {"cat": (200, 60, 40), "dog": (40, 90, 200)}


@pytest.fixture
def sites(tmp_path):
    """Three sites: two laid out by class, one by train and test; with what real
    folders have beside images."""
    rng = np.random.default_rng(0)

    def draw(path, colour):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(rng.normal(colour, 40, (24, 24, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(path)

    for site, parts in {"bern": ("",), "oslo": ("train/", "test/"), "rome": ("",)}.items():
        for part in parts:
            for name, colour in CLASSES.items():
                for i in range(4):
                    draw(tmp_path / "sites" / site / f"{part}{name}" / f"{i}.png", colour)
    (tmp_path / "sites" / "bern" / "cat" / "drawing.svg").touch()
    (tmp_path / "sites" / "rome" / "dog" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    return tmp_path / "sites"


def content(dataset, split, rows):
    """What the images of a client are: digests of their pixels."""
    return sorted(getattr(dataset, split).image(int(row)).tobytes() for row in rows)


def test_a_simulation_of_sites_ends_in_a_report_and_gives_each_what_its_node_would_read(
    sites, tmp_path, capsys
):
    common = [
        "dataset=folder",
        "protocol=personal",
        "clients=3",
        "dataset.on_bad_image=skip",
        "dataset.class_names=[cat,dog]",
    ]
    run = tmp_path / "run"
    where = [f"dataset.root={sites}", "partition=natural", f"run_dir={run}"]
    config = composed(
        [*common, *where, "runtime=inline", "rounds=1", "local_epochs=1", "device=cpu"]
    )
    summary = start(config)
    assert summary["status"] == "finished" and summary["clients"] == 3
    said = capsys.readouterr().out
    assert said.count("1 .svg") == 1 and said.count("1 broken image left out") == 1, (
        "once, whatever reads them"
    )
    with open(run / "clients.csv") as file:
        domains = {row["id"]: row["domain"] for row in csv.DictReader(file)}
    assert domains == {"0": "bern", "1": "oslo", "2": "rome"}
    assert evaluate.main(["--run", str(run)]) == 0
    said = capsys.readouterr().err
    assert said.count("1 .svg") == 1 and said.count("1 broken image left out") == 1
    table = json.loads((run / "partition.json").read_text())
    assert any("1 .svg" in note for note in table["notes"])
    federated_split = split_configured(config)
    for client, site in enumerate(("bern", "oslo", "rome")):
        own = composed([*common, "partition=own"])
        own["dataset"]["root"], own["partition"]["client"] = str(sites / site), client
        mine = split_configured(own)
        for split in ("train", "test"):
            rows, own_rows = (getattr(d.clients[client], split) for d in (federated_split, mine))
            assert content(federated_split.dataset, split, rows) == content(
                mine.dataset, split, own_rows
            ), (
                site,
                split,
            )
            assert len(rows)


def test_a_node_tells_its_own_log_what_it_does_not_use(sites, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(node_registry, "INTERVAL", 0.0)
    nodes = Nodes(
        client_app(),
        [
            {
                "client-id": i,
                "state-dir": str(tmp_path / f"state_{i}"),
                "data-dir": str(sites / site),
            }
            for i, site in enumerate(("bern", "oslo"))
        ],
    )
    overrides = [
        "runtime=flower",
        "partition=own",
        "protocol=personal",
        "dataset=folder",
        "dataset.class_names=[cat,dog]",
    ]
    overrides += [
        "clients=2",
        "rounds=1",
        "local_epochs=1",
        "device=cpu",
        f"run_dir={tmp_path / 'run'}",
    ]
    assert start(composed(overrides), grid=nodes)["status"] == "finished"
    said = capfd.readouterr()
    assert "note: not read: 1 file of kinds" in said.err and "drawing.svg" in said.err
    assert "drawing.svg" not in said.out and not any(b"drawing" in sent for sent in nodes.sent), (
        "nobody else's business"
    )
