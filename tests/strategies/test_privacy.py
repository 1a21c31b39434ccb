"""What leaves a client with images of its own: every byte is recorded and searched."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from clients.client_app import client_app
from clients.messages import Job, full
from clients.private_state import owner
from experiments import evaluate
from experiments.runner import start
from experiments.settings import composed
from fedpgp.build import build_federation
from fedpgp.data import load_dataset
from strategies import node_registry
from strategies.checkpoint import checkpoints, read_checkpoint
from tests.helpers.nodes import Nodes

CLASSES = ["mammal", "insect", "plant", "fruit", "meal", "drink"]
HELD = {
    0: ["mammal", "plant", "fruit", "drink"],
    1: ["insect", "mammal"],
}  # client 1 has no novel class
LONGEST_CHANCE = 16
"""Bytes that agree by chance are fewer."""


def sites(folder: Path) -> list[dict]:
    """Two clients' folders of images, and the configurations of their nodes."""
    emoji = load_dataset("emoji")
    for client, domain in enumerate(("noto", "twemoji")):
        for part in ("train", "test"):
            split = getattr(emoji, part)
            for name in HELD[client]:
                wanted = emoji.class_names.index(name)
                rows = [
                    i
                    for i in range(len(split))
                    if split.labels[i] == wanted and split.domains[i] == domain
                ]
                for row in rows[:4]:
                    path = folder / f"site_{client}" / part / name / f"patient-{client}-{row}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    split.image(row).save(path)
    return [
        {
            "client-id": client,
            "state-dir": str(folder / f"state_{client}"),
            "data-dir": str(folder / f"site_{client}"),
            "min-report": 1,  # eight test images are few
        }
        for client in HELD
    ]


def run_rounds(folder: Path, nodes: Nodes, *more: str) -> None:
    """Two rounds."""
    overrides = [
        "runtime=flower",
        "partition=own",
        "dataset=folder",
        f"dataset.class_names=[{','.join(CLASSES)}]",
    ]
    overrides += [
        "clients=2",
        "rounds=2",
        "local_epochs=1",
        "batch_size=4",
        "evaluate_every=1",
        "n_ctx=4",
    ]
    overrides += ["runtime.min_report=1"]
    interval, node_registry.INTERVAL = node_registry.INTERVAL, 0.0
    try:
        start(composed([*overrides, *more, f"run_dir={folder / 'run'}"]), grid=nodes)
    finally:
        node_registry.INTERVAL = interval


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    """The run's folder, the nodes, and all they sent."""
    folder = tmp_path_factory.mktemp("own")
    nodes = Nodes(client_app(), sites(folder))
    run_rounds(folder, nodes)
    return folder, nodes, b"\0".join(nodes.sent)


def pieces(tensor: np.ndarray) -> list[bytes]:
    """The rows of a tensor as bytes, in each precision they might be sent in; rows
    of zeros say nothing."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    return [
        row.astype(kind).tobytes() for row in rows if row.any() for kind in ("<f4", "<f8", "<f2")
    ]


def test_the_shared_prompt_is_found_in_what_was_sent(federation):
    """The search finds what is there."""
    folder, nodes, sent = federation
    received = b"\0".join(nodes.received)
    shared = read_checkpoint(checkpoints(folder / "run" / "checkpoint")[0])[0]["shared/p_G"]
    assert all(row.tobytes() in received for row in shared)
    assert b"p_G" in sent and b"num-examples" in sent


def test_personal_terms_stay(federation):
    folder, _, sent = federation
    run, _ = owner(folder / "run" / "private")
    for client in HELD:
        for path in (folder / f"state_{client}" / run).rglob("round_*.safetensors"):
            state = load_file(path)
            assert {"U", "V"} <= set(state)
            for name, tensor in state.items():
                assert not [piece for piece in pieces(tensor) if piece in sent], (path, name)
    assert not list((folder / "run" / "private").glob("client_*"))


def test_features_and_images_stay(federation):
    folder, _, sent = federation
    caches = [
        path
        for client in HELD
        for path in (folder / f"state_{client}" / "features").glob("*.safetensors")
    ]
    assert len(caches) == 4
    for path in caches:
        for row in load_file(path)["features"]:
            assert not [piece for piece in pieces(row[None]) if piece in sent]
    for path in folder.glob("site_*/*/*/*.png"):
        data, pixels = path.read_bytes(), np.asarray(Image.open(path).convert("RGB"))
        assert (
            data[64 : 64 + LONGEST_CHANCE] not in sent
            and data[-64 : -64 + LONGEST_CHANCE] not in sent
        )
        busy = [
            row.tobytes()
            for row in pixels.reshape(len(pixels), -1)
            if len(set(row.tobytes())) > LONGEST_CHANCE
        ]
        assert busy and not [row for row in busy if row in sent]


def test_their_figures_cannot_be_made_again_without_their_images(federation, capsys):
    folder, _, _ = federation
    assert evaluate.main(["--run", str(folder / "run")]) == 2
    said = capsys.readouterr().err
    assert (
        "the images of this run are on its clients' own machines" in said
        and "experiments.predict" in said
    )


def test_labels_and_names_stay(federation):
    """No file or folder name, no class name, no list of labels; of the images only their number."""
    folder, _, sent = federation
    names = {
        part for path in folder.glob("site_*/*/*/*.png") for part in path.relative_to(folder).parts
    }
    names |= {str(folder), *CLASSES} - {"train", "test"}
    said = sent.decode("latin-1")
    assert not [
        name
        for name in names - {"train", "test"}
        if re.search(rf"(?<![a-z]){re.escape(name)}(?![a-z])", said)
    ]
    table = json.loads((folder / "run" / "partition.json").read_text())["clients"]
    assert [set(row) for row in table] == [
        {"id", "domain", "train_images", "test_images", "trains"}
    ] * 2
    # base classes are the first three: client 0 trains on two of them, client 1 on two
    assert [row["train_images"] for row in table] == [8, 8] and [
        row["test_images"] for row in table
    ] == [8, 8]


def test_only_what_the_method_shares_leaves(federation):
    """Every tensor that was sent has a shared name, and every other value is a figure or
    the account of the work."""
    _, nodes, _ = federation
    tensors = {
        name
        for content in nodes.replies
        for record in content.array_records.values()
        for name in record
    }
    figures = {
        name
        for content in nodes.replies
        for record in content.metric_records.values()
        for name in record
    }
    others = {
        name
        for content in nodes.replies
        for record in content.config_records.values()
        for name in record
    }
    assert tensors == {"p_G"} and others <= {"json", "account"}
    assert {"num-examples", "loss", "personal.local"} <= figures


def test_the_run_folder_says_what_is_kept_by_the_client(federation):
    folder, _, _ = federation
    page = (folder / "run" / "report.html").read_text()
    assert (
        "kept by the client" in page
        and "Kept by the client" in page
        and "data:image/png" not in page
    )
    assert json.loads((folder / "run" / "samples.json").read_text())["samples"] == []


def test_base_and_novel_are_null_where_a_client_has_no_such_images(federation):
    folder, _, _ = federation
    with open(folder / "run" / "clients.csv") as file:
        rows = {(row["id"], row["model"]): row for row in csv.DictReader(file)}
    assert rows["0", "personal"]["novel"] != "" and rows["1", "personal"]["novel"] == ""
    assert rows["1", "personal"]["base"] != "" and rows["1", "personal"]["local"] != ""


def test_figures_are_rounded_and_few_images_tell_none(federation, tmp_path, capsys):
    """A run whose clients may tell nothing ends with no figures, and says why."""
    folder, _, _ = federation
    with open(folder / "run" / "clients.csv") as file:
        rows = list(csv.DictReader(file))
    for row in rows:  # 8 images of its own: halves; 4 to 8 of base and novel classes: halves
        assert all(
            float(row[figure]) in (0.0, 50.0, 100.0)
            for figure in ("local", "base", "novel")
            if row[figure]
        )
    assert (
        "Clients round the figures of their own images"
        in (folder / "run" / "report.html").read_text()
    )
    nodes = Nodes(client_app(), sites(tmp_path))
    run_rounds(tmp_path, nodes, "runtime.min_report=9", "rounds=1")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["accuracy"]["personal"] is None
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [line["loss"] for line in map(json.loads, lines) if line["kind"] == "train"]
    assert losses == [None]  # eight training images are few too
    assert (
        "2 of 2 clients tell no figures: they have fewer than 9 test images"
        in capsys.readouterr().out
    )
    assert "nothing is measured" in (tmp_path / "run" / "report.html").read_text()


def test_a_client_that_claims_many_images_is_capped(tmp_path, capsys):
    """Nobody else counts its images: it weighs at most ten times the round's lower median,
    and the report says so."""
    says, weight = 10**9, 80

    class Boasts(Nodes):
        def pull_messages(self, message_ids):
            replies = super().pull_messages(message_ids)
            for content in (reply.content for reply in replies):
                if "1/metrics" in content and "loss" in content["1/metrics"]:
                    content["1/metrics"]["num-examples"] = says
                elif (
                    "answer" in content
                    and (said := json.loads(content["answer"]["json"]))["client"] == 1
                ):
                    said["row"]["train_images"] = says
                    content["answer"]["json"] = json.dumps(said)
            return replies

    nodes = Boasts(client_app(), sites(tmp_path))
    run_rounds(tmp_path, nodes, "evaluate_every=0", "rounds=1")
    (line,) = (
        json.loads(x)
        for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        if '"train"' in x
    )
    updates = [
        full(c[f"{k}/arrays"])["p_G"].numpy()
        for c in nodes.replies
        for k in (0, 1)
        if f"{k}/arrays" in c
    ]
    shared = read_checkpoint(checkpoints(tmp_path / "run" / "checkpoint")[-1])[0]["shared/p_G"]
    np.testing.assert_allclose(
        shared, (8 * updates[0] + weight * updates[1]) / (8 + weight), rtol=1e-6, atol=1e-8
    )
    page, said = (tmp_path / "run" / "report.html").read_text(), capsys.readouterr().out
    page = " ".join(page.split())  # as a browser shows it
    assert line["capped"] == [{"client": 1, "images": says, "weight": weight}]
    assert (
        "client 1 says it has 1,000,000,000 images and counts as 80 (strategy.max_weight=10)"
        in said
    )
    assert "Round 1, client 1: 1,000,000,000 images, weighs 80" in page


def test_a_node_that_comes_back_with_other_images_counts_with_those(tmp_path):
    """An image comes while client 1's node is being started again: its updates are not
    refused for the new count."""

    def before(nodes, node, message):
        job = Job.of(message.content)
        extra = tmp_path / "site_1" / "train" / "mammal" / "new.png"
        if (
            message.metadata.message_type == "train"
            and job.server_round == 2
            and node == 1
            and not extra.exists()
        ):
            shutil.copy(next(extra.parent.glob("*.png")), extra)
            nodes.restart(node)

    # A real node reads its folder in a new process for every message.
    app = client_app(lambda text: build_federation(json.loads(text)))
    run_rounds(tmp_path, Nodes(app, sites(tmp_path), before=before), "evaluate_every=0")
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["dropped"] for line in lines if line["kind"] == "train"] == [[], []]
